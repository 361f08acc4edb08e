"""`scripts/quickstart` as a user runs it, killed once on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from readme import PYTHON, README, ROOT
from reference import pair_sums
from transformers import AutoModelForCausalLM

from orpo_lightning import PreferenceDataModule

BASE = str(ROOT / "configs" / "quickstart" / "model")


def test_a_killed_quickstart_goes_on_from_its_checkpoint_and_ends(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    found = re.search(r"weights from +(\S+last\.ckpt)", printed)
    assert found, printed
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "nothing left to train" not in printed


def test_its_last_line_shows_the_held_out_accuracy_rising_by_more_than_the_interval(
    quickstart: tuple[Path, str],
) -> None:
    last = quickstart[1].strip().splitlines()[-1]
    found = re.fullmatch(
        r"held-out accuracy (\S+) → (\S+) \((\d+) pairs, 95 % interval (\S+) to (\S+)\)", last
    )
    assert found, last
    before, after, pairs, low, high = map(float, found.groups())
    assert pairs >= 400
    assert after - before > high - low
    assert after > 0.75


def test_its_adapter_in_plain_peft_gives_the_runs_log_probabilities(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    base = AutoModelForCausalLM.from_pretrained(BASE)
    data = PreferenceDataModule(
        test=str(ROOT / "configs" / "quickstart" / "heldout.jsonl"), tokenizer=BASE, max_length=128
    )
    data.setup("test")
    assert data.test_dataset is not None
    pairs = [data.test_dataset[index] for index in range(100)]

    def accuracy(model: torch.nn.Module) -> float:
        wins = 0
        for pair in pairs:
            with torch.no_grad():
                sums = pair_sums(model, pair)
            wins += int(sums["chosen_sum"] / len(pair.chosen) > sums["rejected_sum"] / len(pair.rejected))
        return wins / len(pairs)

    assert accuracy(base) < 0.85
    # Trained on the NF4 base, loaded here on the unquantised one: close, not equal.
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert accuracy(adapted) > 0.93


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "log", "heldout.json", "record.json", "adapter/README.md", "checkpoints/best.ckpt"],
)
def test_the_run_folder_has(quickstart: tuple[Path, str], name: str) -> None:
    assert (quickstart[0] / name).is_file()


def test_the_python_of_the_readme_runs(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(quickstart[0])
    for text in PYTHON:
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_tensorboard_finds_the_runs_curves(quickstart: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(quickstart[0] / "tb"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    kinds = r"(?:loss|nll_loss|odds_ratio_loss|log_odds_ratio|rewards/\w+|logps/\w+|nll/\w+)"
    table = re.findall(f"`({kinds})`", README)
    assert len(set(table)) == 13
    # Of the held-out pairs none has the longer rejected answer; tests/test_observing_runs.py has such pairs.
    table.remove("rewards/accuracies_longer_is_wrong")
    assert {f"{stage}/{name}" for name in table for stage in ("train", "val")} <= names
    assert {f"val/logps_change/{side}" for side in ("chosen", "rejected", "margins")} <= names
    assert {"val/canary_nll", "val/canary_nll_change", "train/padding", "train/peak_memory_mb"} <= names
    assert {"train/grad_norm", "train/lr", "train/pairs_per_second", "train/tokens_per_second"} <= names


def test_it_ends_with_a_verdict_and_a_page_that_says_the_same(quickstart: tuple[Path, str]) -> None:
    folder, printed = quickstart
    (verdict,) = [line for line in printed.splitlines() if line.startswith("learning: ")]
    assert f"report: {folder / 'report.html'}" in printed.splitlines()
    page = unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert "Preferences are learned." in page
    assert verdict.removeprefix("learning: h") in page  # there it begins with a capital
    for part in ("Change from the base model", "Peak memory, MB", "Under the base model", "base model</dt>"):
        assert part in page
