"""Real runs with a fault in them: the console names it at the end, and so does the page."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.observing.finding import DISPLACEMENT, DIVERGING, LEARNING, LENGTH_ONLY, REVERSED
from tests import planted

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart"
BASE = str(QUICKSTART / "model")
TRAIN, HELD_OUT = QUICKSTART / "train.jsonl", QUICKSTART / "heldout.jsonl"


def everything_printed(capsys: pytest.CaptureFixture[str]) -> str:
    console = capsys.readouterr()
    return console.out + console.err


def ended(folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> str:
    """Return the page of a run whose console said this kind of finding and no other."""
    printed = everything_printed(capsys)
    said = [line for line in printed.splitlines() if line.removeprefix("warning: ").startswith(f"{kind}: ")]
    assert len(said) == 1, printed
    others = {DISPLACEMENT, DIVERGING, LEARNING, LENGTH_ONLY, REVERSED} - {kind}
    lines = [line.removeprefix("warning: ") for line in printed.splitlines()]
    if kind != DISPLACEMENT:  # which says nothing about learning
        assert not [line for line in lines if line.startswith(tuple(f"{other}: " for other in others))]
    page = unescape((folder / "report.html").read_text(encoding="utf-8"))
    sentence = said[0].removeprefix("warning: ").removeprefix(f"{kind}: ")
    assert sentence[1:] in " ".join(page.split())  # the page begins with a capital
    assert printed.count(f"report: {folder / 'report.html'}") == 1
    return page


def test_reversed_labels_are_named(
    tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planted.run(tmp_path / "run", tiny_base, planted.wrong_first, planted.right_first) == 0
    page = ended(tmp_path / "run", capsys, REVERSED)
    assert "Training pairs and held-out pairs prefer opposite answers." in page


def test_training_all_weights_on_reversed_labels_is_not_said_to_be_learning(
    tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, more = (planted.wrong_first, planted.right_first), ("--model.lora_r", "0")
    assert planted.run(tmp_path / "run", tiny_base, *made, lr=2e-3, more=more) == 0
    printed = everything_printed(capsys).splitlines()
    assert not [line for line in printed if line.startswith(f"{LEARNING}: ")]
    (said,) = [line for line in printed if "since the first validation" in line]
    assert said.startswith(("warning: not learning: ", "warning: reversed labels: "))


def test_a_far_too_high_learning_rate_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planted.run(tmp_path / "run", BASE, TRAIN, HELD_OUT, lr=0.3, steps=18) == 0
    assert "The run diverged." in ended(tmp_path / "run", capsys, DIVERGING)


def test_a_run_that_only_learns_length_is_named(
    tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planted.run(tmp_path / "run", tiny_base, planted.longer_first, planted.either_first) == 0
    assert "The model goes by length." in ended(tmp_path / "run", capsys, LENGTH_ONLY)


def test_a_displaced_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = planted.away_from(TRAIN)
    assert planted.run(tmp_path / "run", BASE, away, HELD_OUT, lr=3e-3, steps=18) == 0
    ended(tmp_path / "run", capsys, DISPLACEMENT)


def test_a_run_that_fails_leaves_its_page_too(
    tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"class_path": "tests.planted.Failing", "init_args": {"step": 6}}
    more = ("--trainer.callbacks+", json.dumps([settings]))
    folder = tmp_path / "run"
    assert planted.run(folder, tiny_base, planted.right_first, planted.right_first, more=more) == 3
    printed = everything_printed(capsys)
    assert printed.count("report: ") == 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "The run failed." in page
    assert "failed: planted at step 6" in page


def test_a_page_that_cannot_be_written_is_one_warning_and_the_run_is_well(
    tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "report.html").mkdir(parents=True)
    assert planted.run(folder, tiny_base, planted.right_first, planted.right_first, steps=3) == 0
    printed = everything_printed(capsys)
    (line,) = [line for line in printed.splitlines() if "report.html" in line]
    assert line.startswith(f"warning: {folder / 'report.html'} was not written: IsADirectoryError")
    assert (folder / "adapter" / "adapter_config.json").is_file()
