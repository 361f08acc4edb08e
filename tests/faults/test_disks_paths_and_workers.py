"""Bad surroundings: disks that are full or read-only, rights, odd paths, clocks, killed workers, two runs."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from surroundings import ROOT, Done, Run, fill, pairs, write_pairs

from orpo_lightning import file_locks
from orpo_lightning.checkpoint_files import read_checkpoint

NUMBERS = re.compile(r"free are [\d,.]+ MB")


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its place in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_behind(folder: Path) -> list[str]:
    """Return the names of temporary files and folders that a run left."""
    return [path.name for path in folder.rglob(".*") if path.name != ".lock"]


def assert_full(done: Done, words: str) -> None:
    assert done.code == 5, done
    assert "the disk is full" in done.line
    assert words in done.line
    assert NUMBERS.search(done.line), done.line


def filling(disk: Path, **settings: int) -> list[str]:
    flags = [f"--trainer.callbacks.{name}={value}" for name, value in settings.items()]
    return ["--trainer.callbacks+=surroundings.FillDisk", f"--trainer.callbacks.folder={disk}", *flags]


# A disk that is full


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(run: Run, small_disk: Path) -> None:
    folder = small_disk / "run"
    words = filling(small_disk, step=3, leave=30_000)
    done = run.fit(*words, run_dir=folder, trainer__max_steps=4, save_every=2)
    assert_full(done, f"{folder}/checkpoints/last.ckpt needs ")
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert left_behind(folder) == []
    (small_disk / "filler").unlink()
    assert run.fit(run_dir=folder, trainer__max_steps=4, resume="auto").code == 0
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_what_a_kill_during_a_save_left_on_the_disk_is_no_reason_to_stop(run: Run, small_disk: Path) -> None:
    words = {"run_dir": small_disk / "run", "save_every": 1}
    assert run.fit(**words).code == 0
    fill(small_disk, leave=30_000)
    left = small_disk / "run" / "checkpoints" / ".last.ckpt.1"
    (small_disk / "filler").rename(left)
    done = run.fit(**words, trainer__max_steps=4, resume="auto")
    assert done.code == 0, done
    assert not left.exists()


def test_too_small_a_disk_is_told_before_the_first_step(run: Run, small_disk: Path) -> None:
    fill(small_disk, leave=200_000)
    done = run.fit(run_dir=small_disk / "run")
    assert done.code == 5
    assert "not enough room in" in done.line
    assert NUMBERS.search(done.line)
    assert "step 1/" not in done.out


def test_an_adapter_that_does_not_fit_leaves_the_one_before(run: Run, small_disk: Path) -> None:
    folder = small_disk / "run"
    assert run.fit(run_dir=folder).code == 0
    before = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    done = run.fit(*filling(small_disk), run_dir=folder, resume="auto", trainer__max_steps=3)
    assert_full(done, f"the adapter {folder}/adapter does not fit")
    assert {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()} == before
    assert load_file(folder / "adapter" / "adapter_model.safetensors")
    assert left_behind(folder) == []


def test_a_log_that_does_not_fit_ends_the_run_with_the_numbers(run: Run, small_disk: Path) -> None:
    folder = small_disk / "run"
    done = run.fit(*filling(small_disk, step=2), run_dir=folder, trainer__max_steps=6)
    assert_full(done, f"the log {folder}/log does not fit")
    assert left_behind(folder) == []
    assert not [one for one in logging.getLogger("orpo_lightning").handlers if hasattr(one, "baseFilename")]


def test_curves_that_do_not_fit_end_the_run_with_the_numbers(run: Run, small_disk: Path) -> None:
    folder, curves = small_disk / "run", {"trainer__logger": "true", "trainer__max_steps": 6}
    assert_full(run.fit(*filling(small_disk, step=2), run_dir=folder, save_every=1, **curves), str(folder))


def test_a_configuration_that_does_not_fit_leaves_the_one_before(run: Run, small_disk: Path) -> None:
    folder = small_disk / "run"
    assert run.fit(run_dir=folder).code == 0
    before = (folder / "config.yaml").read_text()
    fill(small_disk)
    done = run.fit(run_dir=folder, resume="auto", trainer__max_steps=3)
    assert done.code == 5
    assert NUMBERS.search(done.line)
    assert (folder / "config.yaml").read_text() == before
    assert left_behind(folder) == []


def test_tokenised_pairs_that_do_not_fit_leave_nothing(run: Run, small_disk: Path, tmp_path: Path) -> None:
    fill(small_disk, leave=200_000)
    train = write_pairs(tmp_path / "many.jsonl", pairs(5000))
    done = run.fit(data__train=train, data__cache_dir=small_disk / "cache")
    assert done.code == 5
    assert f"{small_disk}/cache: cannot store the tokenised pairs: No space left on device" in done.line
    assert NUMBERS.search(done.line)
    assert list((small_disk / "cache").iterdir()) == []


# A disk that is read-only, and rights that are missing


@pytest.fixture
def read_only(small_disk: Path) -> Path:
    """Return a folder on a file system that nothing can be written to; it holds a run's folder."""
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


@pytest.mark.parametrize("name", ["run", "new/run"])
def test_k10_a_read_only_run_folder_is_one_line(run: Run, read_only: Path, name: str) -> None:
    done = run.fit(run_dir=read_only / name)
    assert done.code == 5
    assert "the file system is read-only: " in done.line
    assert str(read_only / name.partition("/")[0]) in done.line
    assert "set --run_dir to a folder that can be written" in done.line


def test_k10_a_read_only_cache_is_one_line_that_names_its_key(run: Run, read_only: Path) -> None:
    done = run.fit(data__cache_dir=read_only / "cache")
    assert done.code == 5
    assert "cannot store the tokenised pairs: Read-only file system" in done.line
    assert "set data.cache_dir to another folder" in done.line


def test_a_folder_without_the_right_to_write_is_one_line(run: Run, tmp_path: Path, mortal: None) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = run.fit(run_dir=closed / "run")
    assert done.code == 5
    assert f"permission denied: {closed}/run" in done.line


def test_weights_without_the_right_to_read_are_one_line(run: Run, tmp_path: Path, mortal: None) -> None:
    base = Path(shutil.copytree(run.base, tmp_path / "base"))
    (base / "model.safetensors").chmod(0)
    done = run.fit(model__base_model=base)
    assert done.code == 5
    assert str(base) in done.line
    assert "ermission denied" in done.line


def test_data_without_the_right_to_read_is_one_line(run: Run, mortal: None) -> None:
    run.train.chmod(0)
    done = run.fit()
    assert done.code == 3
    assert f"{run.train}: cannot be read: Permission denied" in done.line


# Odd paths


def test_k10_spaces_unicode_and_home_in_every_path_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "zu Hause"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(run.base, home / "kleines modell ß")
    shutil.copy(run.train, home / "paare 日本.jsonl")
    (home / "eigene werte.yaml").write_text("save_every: 1\n")
    places = {
        "model__base_model": "~/kleines modell ß",
        "data__train": "~/paare 日本.jsonl",
        "data__cache_dir": "~/zwischen lager",
        "run_dir": "~/läufe/erster 🙂",
    }
    done = run.fit("-c", home / "eigene werte.yaml", **places)
    assert (done.code, done.err) == (0, "")
    folder = home / "läufe" / "erster 🙂"
    assert {path.name for path in folder.iterdir()} >= {"adapter", "checkpoints", "config.yaml", "log"}
    assert not (tmp_path / "~").exists()
    last = "~/läufe/erster 🙂/checkpoints/last.ckpt"
    for resume in ("auto", last):
        done = run.fit(**places, resume=resume, trainer__max_steps=3)
        assert (done.code, done.err) == (0, "")
    done = run.fit(**{**places, "run_dir": "~/läufe/zweiter"}, resume=last, trainer__max_steps=4)
    assert (done.code, done.err) == (0, "")


EVERYTHING = {
    *("adapter", "adapter-best", "checkpoints", "config.yaml", "curves.jsonl", "dropped.jsonl", "log"),
    *("pairs.npz", "record.json", "report.html", "samples.jsonl", "tb"),
}


def with_validation(folder: Path) -> dict[str, Any]:
    """Return the settings of a run that writes all there is, a list of rows left out too."""
    held_out = write_pairs(folder / "held_out.jsonl", pairs(20)[16:])
    trained = write_pairs(folder / "twice.jsonl", [*pairs(16), *pairs(1)])
    return {
        "data__train": trained,
        "data__validation": held_out,
        "trainer__val_check_interval": 1,
        "trainer__logger": "null",
    }


def test_the_saved_configuration_of_odd_paths_starts_the_same_run(run: Run, tmp_path: Path) -> None:
    odd = tmp_path / "a: b #c 'd' \"e\""
    assert run.fit(run_dir=odd, **with_validation(tmp_path)).code == 0
    before = contents(odd)
    assert {name.partition("/")[0] for name in before} >= EVERYTHING
    done = run("fit", "-c", odd / "config.yaml", "--run_dir", "again")
    assert (done.code, done.err) == (0, "")
    assert contents(odd) == before, "a new run never overwrites an old one"
    assert {path.name for path in Path("again").iterdir()} >= EVERYTHING
    first, again = (yaml.safe_load((Path(one) / "config.yaml").read_text()) for one in (odd, "again"))
    assert first["model"] == again["model"]


def test_all_that_a_run_writes_is_in_its_folder_whatever_the_trainers_is(run: Run, tmp_path: Path) -> None:
    own = ["--trainer.callbacks+=orpo_lightning.callbacks.Samples", "--trainer.callbacks.max_new_tokens=4"]
    done = run.fit(*own, trainer__default_root_dir="mine", **with_validation(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert {path.name for path in Path("run").iterdir()} >= EVERYTHING
    assert not contents(Path("mine"))


# A clock that jumps


def test_a_clock_that_jumps_back_changes_neither_rates_nor_what_is_resumed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: straight() - 3600 * next(calls))
    done = run.fit(trainer__logger="true", trainer__max_steps=4, save_every=2)
    assert (done.code, done.err) == (0, "")
    lines = [line for line in done.out.splitlines() if line.startswith("step ") and "/4" in line]
    assert len(lines) == 4
    assert all(float(re.search(r"([\d.e+]+) pairs/s", line)[1]) > 0 for line in lines)  # type: ignore[index]
    assert all("eta 0:00:" in line for line in lines)
    folder = Path("run/checkpoints")
    os.utime(folder / "previous.ckpt", (straight() + 10**6,) * 2)  # it was written in the future
    done = run.fit(resume="auto", trainer__max_steps=5)
    assert "weights from    run/checkpoints/last.ckpt" in done.out
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 5


# Data workers


def test_a_killed_data_worker_ends_the_run_with_one_line(run: Run) -> None:
    words = ["--trainer.callbacks+=surroundings.KillWorker"]
    done = run.fit(*words, data__num_workers=2, trainer__max_steps=50, trainer__max_epochs=9)
    assert done.code == 5
    assert "a data worker was killed or died (DataLoader worker (pid" in done.line
    assert "lower data.num_workers, --resume auto continues" in done.line


# Two runs in one folder


HOLD = """
import os, signal, sys
from pathlib import Path
from orpo_lightning.run_lock import RunLock
lock = RunLock(Path("run"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Return a process that holds the run's folder until it is killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_run_begins_where_the_file_system_has_no_locks_and_says_so(
    code: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Lustre without flock, or NFS without lockd."""

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    file_locks._warn.cache_clear()
    done = run.fit()
    assert done.code == 0, done
    warning = "warning: run: this file system has no locks: do not start two runs in this folder\n"
    assert done.out.count(warning) == 1


def test_a_folder_that_another_run_holds_is_refused_until_that_is_killed(
    run: Run, holder: subprocess.Popen[str]
) -> None:
    done = run.fit()
    assert done.code == 2
    assert f"run is in use by process {holder.pid} on " in done.line
    assert "wait until that run has ended, or set --run_dir NEW" in done.line
    assert not Path("run/checkpoints").exists()
    holder.kill()
    holder.wait()
    assert run.fit().code == 0
