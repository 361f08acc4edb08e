"""Trials shared out by their storage: who takes which, what becomes of those whose process is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.pages.sweep_page import sweep_page
from orpo_lightning.stop_signals import Stopped
from orpo_lightning.sweeping import runner, trial
from orpo_lightning.sweeping.report import as_json, table
from orpo_lightning.sweeping.space import Choices, Range, Space
from orpo_lightning.sweeping.study import STARTUP, Study

ROOT = Path(__file__).parent.parent
LISTED: Space = {"x": Choices((0.0, 1.0, 2.0, 3.0))}
DRAWN: Space = {"x": Range(-1.0, 1.0)}


def study_of(folder: Path, space: Space = LISTED, **settings: Any) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    return Study(folder, space, {"search space": str(space)}, **({"goal": "min"} | settings))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let trials run lines of Python instead of `fit`: `x` is the setting, `say(step, value)` reports."""

    def put(body: str) -> None:
        head = """
            import json, os, signal, sys, time
            told = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
            x, folder = float(told["x"]), told["--run_dir" if "--run_dir" in told else "run_dir"]
            def say(step, value):
                with open(told["trainer.callbacks.file"], "a") as file:
                    file.write(json.dumps({"step": step, "value": value}) + "\\n")
        """
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(head) + textwrap.dedent(body))
        monkeypatch.setattr(trial, "PROGRAM", (sys.executable, str(file)))

    return put


def run(study: Study) -> list[dict[str, Any]]:
    runner.run(study, [], "val/loss", lambda: None)
    facts = {"metric": "val/loss", "goal": "min"}
    return as_json(study, facts)["trials"]


def test_a_grid_tries_every_combination_once_and_finds_the_best(tmp_path: Path, program: Any) -> None:
    program("say(1, (x - 2) ** 2)")
    study = study_of(tmp_path / "sweep")
    trials = run(study)
    assert sorted(one["settings"]["x"] for one in trials) == [0.0, 1.0, 2.0, 3.0]
    best = study.best()
    assert best is not None
    assert (best.params["x"], best.value) == (2.0, 0.0)
    assert [one["number"] for one in trials] == [1, 2, 3, 4]
    assert all(Path(one["folder"], trial.CONSOLE).is_file() for one in trials)


def test_a_sweep_goes_on_where_the_file_system_has_no_locks(
    tmp_path: Path, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    program("say(1, x)")
    study = study_of(tmp_path / "sweep")
    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert len(run(study)) == 4


def test_trials_are_drawn_from_a_range_alike_each_time_and_never_twice(tmp_path: Path, program: Any) -> None:
    program("say(1, x * x)")
    drawn = [
        [one["settings"]["x"] for one in run(study_of(tmp_path / name, DRAWN, most=4))] for name in ("a", "b")
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4


def test_a_trial_that_falls_behind_is_ended_early_and_not_the_best(tmp_path: Path, program: Any) -> None:
    program(f"""
        number = int(os.path.basename(folder))
        is_behind = number > {STARTUP}  # the last one: before, there is no median to be behind
        say(1, 9.0 if is_behind else number)
        if is_behind:
            time.sleep(60)
        say(2, 0.0 if is_behind else number)
    """)
    space: Space = {"x": Choices(tuple(map(float, range(STARTUP + 1))))}
    begun = time.monotonic()
    study = study_of(tmp_path / "sweep", space)
    last = run(study)[-1]
    assert time.monotonic() - begun < 40
    assert (last["state"], last["value"], last["values"]) == ("pruned", 9.0, [[1, 9.0]])
    best = study.best()
    assert best is not None
    assert best.value == 1.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("print('error: no finite gradient'); sys.exit(6)", "exit code 6: no finite gradient"),
        ("sys.exit(3)", "exit code 3: see "),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL: out of memory?"),
        ("pass", "no val/loss was logged in a validation"),
        ("say(1, 'nan')", "val/loss is not a number"),
    ],
)
def test_a_run_that_fails_is_a_failed_trial_with_its_reason(
    body: str, reason: str, tmp_path: Path, program: Any
) -> None:
    program(f"say(1, 1.0) if x < 2 else 0\nif x >= 2:\n    {body}")
    failed = [one for one in run(study_of(tmp_path / "sweep")) if one["state"] == "failed"]
    assert sorted(one["settings"]["x"] for one in failed) == [2.0, 3.0]
    assert all(reason in one["reason"] for one in failed)


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        ("sys.exit(128 + signal.SIGUSR1)", 128 + signal.SIGUSR1),
        ("sys.exit(128 + signal.SIGTERM)", 128 + signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
    ],
)
def test_a_run_that_a_signal_stops_stops_the_sweep_and_goes_on_with_the_next_one(
    stop: str, code: int, tmp_path: Path, program: Any
) -> None:
    """As a run does that sees its SLURM job end, which the sweep does not see."""
    program(f"""
        mark = os.path.join(folder, "begun")
        if x == 2 and not os.path.exists(mark):
            open(mark, "w").close()
            say(1, 5.0)
            {stop}
        say(2, x)
    """)
    with pytest.raises(Stopped, match=str(code)) as raised:
        run(study_of(tmp_path / "sweep"))
    assert raised.value.code == code
    assert re.match(r"trial \d was stopped by SIG\w+: the same command goes on", raised.value.line)
    study = study_of(tmp_path / "sweep")
    assert all(one.state.name != "FAIL" for one in study.trials())
    trials = run(study)
    assert [one["state"] for one in trials] == ["complete"] * 4
    assert sorted(one["number"] for one in trials) == [1, 2, 3, 4]
    (again,) = (one for one in trials if one["settings"]["x"] == 2)
    assert again["values"] == [[1, 5.0], [2, 2.0]], "it goes on in the folder that it began in"


def test_neither_numbers_page_nor_messages_tell_the_secrets_that_are_searched(
    tmp_path: Path, program: Any, caplog: pytest.LogCaptureFixture
) -> None:
    program("say(1, x)")
    space: Space = {
        "x": Choices((0.0,)),
        "trainer.logger.init_args.api_key": Choices(("confidential1", "confidential2")),
        "pair": Choices(({"a.password": "confidential3", "a.lr": 1},)),
    }
    study = study_of(tmp_path / "sweep", space)
    with caplog.at_level(logging.INFO, "orpo_lightning"):
        run(study)
    report = as_json(study, {"metric": "val/loss", "goal": "min"})
    assert {one["settings"]["trainer.logger.init_args.api_key"] for one in report["trials"]} == {"***"}
    for text in (json.dumps(report), sweep_page(report), table(report), caplog.text):
        assert "***" in text
        assert "confidential" not in text


def test_a_sweep_whose_first_trials_all_fail_ends_with_the_reason(tmp_path: Path, program: Any) -> None:
    program("print('error: data.train: no such file'); sys.exit(2)")
    study = study_of(tmp_path / "sweep")
    with pytest.raises(SurroundingsError, match="first 3 trials failed, the last: exit code 2: data"):
        run(study)
    assert len(study.ended()) == 3


def test_a_folder_with_another_question_is_refused(tmp_path: Path) -> None:
    study_of(tmp_path / "sweep")
    with pytest.raises(UsageError, match="holds a sweep with another search space: set --out NEW"):
        study_of(tmp_path / "sweep", DRAWN)


def test_the_table_has_the_best_first_and_counts_the_rest(tmp_path: Path, program: Any) -> None:
    program("say(1, x) if x != 3 else sys.exit(5)")
    study = study_of(tmp_path / "sweep")
    run(study)
    lines = table(as_json(study, {"metric": "val/loss", "goal": "min"})).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[-1] == "4 of 4 trials: 3 complete, 1 failed"


WORKER = """
import sys
from pathlib import Path
from orpo_lightning.sweeping import runner, trial
from orpo_lightning.sweeping.space import Choices
from orpo_lightning.sweeping.study import Study
folder, program = map(Path, sys.argv[1:3])
trial.PROGRAM = (sys.executable, str(program))
space = {"x": Choices(tuple(map(float, range(6))))}
study = Study(folder, space, {}, goal="min", prunes=False)
print("ready", flush=True)
sys.stdin.readline()
runner.run(study, [], "val/loss", lambda: None)
print("ran", flush=True)
"""


def worker(folder: Path, program: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WORKER, str(folder), str(program)]
    made = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


def begin(one: subprocess.Popen[str]) -> None:
    assert one.stdin is not None
    one.stdin.write("\n")
    one.stdin.flush()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob("trials/*/ran.jsonl") for line in file.open()]


def test_two_processes_share_the_trials_and_one_takes_over_from_one_that_is_killed(
    tmp_path: Path, program: Any
) -> None:
    program("""
        with open(os.path.join(folder, "ran.jsonl"), "a") as file:
            file.write(json.dumps({"x": x, "parent": os.getppid()}) + "\\n")
        say(1, x)
        quick = os.path.join(folder, "..", "quick")
        while not os.path.exists(quick) and os.getppid() == int(told["trainer.callbacks.parent"]):
            time.sleep(0.05)
        say(2, x)
    """)
    folder = tmp_path / "sweep"
    folder.mkdir()
    both = [worker(folder, tmp_path / "program.py") for _ in range(2)]
    for one in both:
        begin(one)
    deadline = time.monotonic() + 60
    while len(lines_of(folder)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    both[0].send_signal(signal.SIGKILL)
    both[0].wait()
    (folder / "trials" / "quick").touch()
    assert both[1].wait(60) == 0
    ran = lines_of(folder)
    assert len({line["parent"] for line in ran}) == 2
    assert len(ran) == 7, "six trials, one of them twice"
    study = Study(folder, {"x": Choices(tuple(map(float, range(6))))}, {}, goal="min", prunes=False)
    assert [one.state.name for one in study.trials()] == ["COMPLETE"] * 6
    assert len({study.name_of(one) for one in study.trials()}) == 6
    again = max(study.trials(), key=lambda one: one.number)
    assert study.name_of(again) <= 2, "it goes on in the folder that it began in"
