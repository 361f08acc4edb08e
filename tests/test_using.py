"""What README says can be done after training, on the quickstart's run, line by line and in its order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from test_chat import Terminal
from test_readme import COMMANDS, ELSEWHERE
from transformers import AutoModelForCausalLM

from orpo_lightning.__main__ import main

ROOT = Path(__file__).parent.parent
LINES = {
    shlex.split(line)[3]: shlex.split(line)[3:] for line in COMMANDS if ELSEWHERE.get(line) == "test_using.py"
}


@pytest.fixture(scope="module")
def folder(quickstart: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which README's paths are true."""
    folder = tmp_path_factory.mktemp("using")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "runs").mkdir()
    (folder / "runs" / "quickstart").symlink_to(quickstart[0])
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_readme_has_them_in_the_order_of_use() -> None:
    assert list(LINES) == ["generate", "chat", "merge", "export", "push"]


def test_generate_answers_the_held_out_questions_and_mostly_right(folder: Path) -> None:
    assert main(LINES["generate"]) == 0
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) >= 400
    right = [row["chosen"][-1]["content"] == row["answer"] for row in rows]
    wrong = [row["rejected"][-1]["content"] == row["answer"] for row in rows]
    assert sum(right) > 3 * sum(wrong)


def test_chat_answers_at_a_terminal_as_generate_does(folder: Path) -> None:
    row = json.loads((folder / "answers.jsonl").read_text().splitlines()[0])
    terminal = Terminal(*LINES["chat"], folder=folder)
    terminal.until(r"(?m)^> ")
    assert terminal.type(row["prompt"][-1]["content"]) == row["answer"]
    assert terminal.end() == 0


def test_merge_proves_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(LINES["merge"]) == 0
    printed = capsys.readouterr().out
    assert "proof         64 pairs: test pairs of the run" in printed
    found = re.search(r"difference    max (\S+), mean (\S+) nats a token before and after", printed)
    assert found
    facts = json.loads((folder / "merged" / "merge.json").read_text())
    assert facts["difference"]["max"] < facts["difference"]["bound"]
    assert facts["trained_on"] == "nf4"
    assert 0 < facts["difference_from_trained_weights"]["mean"] < 0.5
    assert AutoModelForCausalLM.from_pretrained(folder / "merged").config.dtype is not None


def test_export_writes_what_servers_need(folder: Path) -> None:
    assert main(LINES["export"]) == 0
    assert {path.name for path in (folder / "served").iterdir()} >= {"USE.md", "Modelfile"}
    assert "TEMPLATE" in (folder / "served" / "Modelfile").read_text()


def test_push_shows_what_it_would_send(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(LINES["push"]) == 0
    printed: Any = capsys.readouterr().out
    assert "bytes  model.safetensors" in printed
    assert "base_model: you/tiny-base" in printed
    assert printed.endswith("nothing was sent: --dry_run\n")
