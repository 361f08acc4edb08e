"""What takes long to show: `pytest -m soak -s tests/faults/test_soak.py`; docs/reliability.md has the log."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, Forks, assert_same_end, load

Fit = Callable[..., list[Any]]
pytestmark = pytest.mark.soak


def test_twenty_kills_at_random_moments_change_nothing(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    settings = [
        "--trainer.max_steps=400",
        "--data.num_workers=2",
        "--save_every=5",
        "--trainer.val_check_interval=50",
    ]
    began = time.monotonic()
    ended = forks.run(fit("whole", *settings), tmp_path)
    whole = time.monotonic() - began
    assert ended.code == 0, ended.err
    print(f"\nundisturbed: 400 steps in {whole:.1f} s")
    draw, kills = random.Random(0), 0
    while kills < 20:
        run = forks.start(fit("killed", *settings, "--resume=auto"), tmp_path)
        seconds = draw.uniform(0.2, 1.5 + whole / 20)
        time.sleep(seconds)
        run.send(9)
        ended = run.wait()
        assert ended.code in (0, -9), ended.err
        kills += 1
        there = (tmp_path / "killed" / "checkpoints" / "last.ckpt").is_file()
        step = load(tmp_path / "killed")["global_step"] if there else 0
        print(f"kill {kills:2}: after {seconds:4.1f} s, exit {ended.code}, last.ckpt at step {step}")
    assert forks.run(fit("killed", *settings, "--resume=auto"), tmp_path).code == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
    print("weights, optimizer, schedule, place in the data and all curves are bit-equal")


def test_two_thousand_steps_hold_no_more_than_two_hundred(forks: Forks, tmp_path: Path) -> None:
    file = tmp_path / "resources.jsonl"
    words = [
        "fit",
        "-c",
        "configs/quickstart.yaml",
        f"--run_dir={tmp_path / 'run'}",
        "--trainer.max_steps=2000",
    ]
    words += ["--data.batch_size=4", "--trainer.val_check_interval=200", "--data.validation_size=40"]
    words += [f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.callbacks+=resources.Resources"]
    ended = forks.run([*words, f"--trainer.callbacks.file={file}"], ROOT)
    assert ended.code == 0, ended.err
    found = [json.loads(line) for line in file.read_text().splitlines()]
    for row in found:
        print(row)
    late = found[1:]  # by then every kind of batch, a validation and two savings have been
    assert {row["files"] for row in late} == {late[0]["files"]}
    assert {row["threads"] for row in late} == {late[0]["threads"]}
    # Halves are compared: single values go up and down by a few percent as the allocator keeps room or not.
    for name, more in (("memory_mb", 1.02), ("step_ms", 1.25)):  # others' processes show in the time too
        half = len(late) // 2
        first, second = (sorted(row[name] for row in part)[half // 2] for part in (late[:half], late[half:]))
        assert second <= more * first, name
