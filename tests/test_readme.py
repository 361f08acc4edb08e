"""Every command and every block of Python in the README is run here or by the test named here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"[a-z]+ ", line)]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
ELSEWHERE = {
    "git clone <this repository> && cd orpo_lightning": "a clone is what CI runs in",
    "bash scripts/quickstart": "test_quickstart.py",
    "python -m orpo_lightning evaluate runs/quickstart": "scripts/quickstart",
    "pip install -c constraints.txt -e .": "scripts/quickstart and scripts/test",
    "tensorboard --logdir runs": "test_tensorboard_finds_the_runs_curves",
}


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) >= 8
    assert len(PYTHON) == 2


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in ELSEWHERE])
def test_a_command_of_the_readme_is_understood(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "orpo_lightning"], f"{command}: no test runs this"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(
        [sys.executable, *words[1:], "--print_config"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "base_model: mistralai/Mistral-7B-v0.1" in done.stdout


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
    assert len(set(table)) == 12
    assert {f"{stage}/{name}" for name in table for stage in ("train", "val")} <= names
    assert {"train/grad_norm", "train/lr", "train/pairs_per_second", "train/tokens_per_second"} <= names
