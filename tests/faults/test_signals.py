"""SIGTERM, Ctrl-C and SIGUSR1 in every phase: saved at the next step, exit 128 + signal, nothing lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import SIGNALS, Forks, assert_same_end, load, run_ranks, strike

Fit = Callable[..., list[Any]]

# Phase: the hook, the steps done by then, and the step that is saved. Each begins where the one before ended.
PHASES = {
    "first micro-batch of a step": ("on_train_batch_start", 0, 1),
    "second micro-batch of a step": ("on_before_zero_grad", 1, 2),
    "the optimizer's step": ("on_before_optimizer_step", 2, 3),
    "a step before a validation": ("on_before_optimizer_step", 3, 4),
    "a validation": ("on_validation_batch_end", 4, 4),
    "the saving of a checkpoint": ("on_save_checkpoint", 5, 6),
    "the last step of an epoch": ("on_before_optimizer_step", 6, 7),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_in_each_phase_ends_the_run_at_the_next_step_and_it_goes_on_to_the_same_end(
    name: str, whole: Path, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    for phase, (hook, done, saved) in PHASES.items():
        rarely = [] if hook == "on_save_checkpoint" else ["--save_every=50"]
        ended = forks.run(fit("run", "--resume=auto", *rarely, *strike(hook, done, name)), tmp_path)
        assert ended.code == 128 + SIGNALS[name], f"{phase}: {ended.err}"
        assert f"{name}: stopped after step {saved}, saved in run/checkpoints/last.ckpt" in ended.out, phase
        assert "Traceback" not in ended.err, phase
        assert load(tmp_path / "run")["global_step"] == saved, phase
    ended = forks.run(fit("run", "--resume=auto"), tmp_path)
    assert ended.code == 0, ended.err
    assert_same_end(whole, tmp_path / "run")


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_training_ends_the_run_at_once(
    name: str, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    ended = forks.run(fit("run", *strike("setup", 0, name)), tmp_path)
    assert ended.code == 128 + SIGNALS[name]
    assert ended.err == f"error: stopped by {name}\n"
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_signal_while_pairs_are_tokenised_ends_the_run_at_once(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    big = tmp_path / "big.jsonl"
    line = '{"prompt": "red %d", "chosen": "blue house", "rejected": "green"}\n'
    big.write_text("".join(line % number for number in range(200_000)))
    words = fit("run", f"--data.train={big}", f"--data.cache_dir={tmp_path / 'cache'}")
    run = forks.start(words, tmp_path)
    end = time.monotonic() + 60
    while not list((tmp_path / "cache").rglob("*")) and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    run.send(SIGNALS["SIGTERM"])
    began = time.monotonic()
    ended = run.wait()
    assert ended.code == 143, ended.err
    assert time.monotonic() - began < 10


def test_the_second_ctrl_c_ends_the_run_without_waiting(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    struck = strike("on_train_batch_start", 2, "SIGINT", times=2)
    ended = forks.run(fit("run", "--trainer.accumulate_grad_batches=4", *struck), tmp_path)
    assert ended.code == 130
    assert "SIGINT: stopping after this optimizer step; Ctrl-C again stops at once" in ended.err
    assert "stopped after step" not in ended.out
    assert load(tmp_path / "run")["global_step"] == 2


@pytest.mark.parametrize("second", ["SIGTERM", "SIGUSR1"])
def test_another_signal_does_not_cut_short_the_saving_that_the_first_asked_for(
    second: str, fit: Fit, forks: Forks, tmp_path: Path, slurm: dict[str, str]
) -> None:
    first = strike("on_train_batch_start", 2, "SIGUSR1")
    again = strike("on_save_checkpoint", 3, second)
    ended = forks.run(fit("run", "--save_every=50", *first, *again), tmp_path, **slurm)
    assert ended.code == 138, ended.err
    assert "SIGUSR1: stopped after step 3, saved in run/checkpoints/last.ckpt" in ended.out
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert load(tmp_path / "run")["global_step"] == 3


def test_the_second_ctrl_c_ends_a_save_too_and_leaves_nothing_of_it(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    both = [*strike("on_train_batch_start", 2, "SIGINT"), *strike("on_save_checkpoint", 3, "SIGINT")]
    ended = forks.run(fit("run", "--save_every=50", *both), tmp_path)
    assert ended.code == 130, ended.err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["best.ckpt"]


@pytest.mark.parametrize("hook", ["on_train_end", "on_save_checkpoint"])
def test_a_signal_at_the_end_of_training_waits_until_the_last_step_is_saved(
    hook: str, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """A stop at the end of a pass, as by early stopping, tells nobody before that its step was the last."""
    words = ["--save_every=50", "--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    stop = strike("on_train_epoch_end", 7, "stop")
    ended = forks.run(fit("run", *words, *stop, *strike(hook, 7, "SIGTERM")), tmp_path)
    assert ended.code == 143, ended.err
    assert "SIGTERM: stopped after step 7, saved in run/checkpoints/last.ckpt" in ended.out
    assert load(tmp_path / "run")["global_step"] == 7


def test_a_signal_to_the_whole_group_leaves_the_data_workers_at_work(
    whole: Path, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    words = ("--data.num_workers=2", "--save_every=50")
    struck = strike("on_train_batch_start", 2, "SIGTERM to all")
    ended = forks.run(fit("run", *words, *struck), tmp_path)
    assert ended.code == 143, ended.err
    assert load(tmp_path / "run")["global_step"] == 3
    assert forks.run(fit("run", "--resume=auto"), tmp_path).code == 0
    assert_same_end(whole, tmp_path / "run")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a SLURM job; what its scontrol is told is written to `asked`."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    return {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:/usr/bin:/bin"}


def test_a_slurm_job_is_put_into_the_queue_again_after_sigusr1(
    fit: Fit, forks: Forks, tmp_path: Path, slurm: dict[str, str]
) -> None:
    ended = forks.run(fit("run", *strike("on_train_batch_start", 2, "SIGUSR1")), tmp_path, **slurm)
    assert ended.code == 138, ended.err
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    ended = forks.run(fit("other", *strike("on_train_batch_start", 2, "SIGTERM")), tmp_path, **slurm, **array)
    assert ended.code == 143
    assert (tmp_path / "asked").read_text() == "requeue 77\n"


def test_a_job_that_ends_soon_is_saved_in_time_and_put_into_the_queue_again(
    whole: Path, fit: Fit, forks: Forks, tmp_path: Path, slurm: dict[str, str]
) -> None:
    soon = {**slurm, "SLURM_JOB_END_TIME": str(int(time.time()) + 20)}
    ended = forks.run(fit("run", "--save_every=50"), tmp_path, **soon)
    assert ended.code == 138, ended.err  # as after SIGUSR1, which may come too late where steps are long
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert load(tmp_path / "run")["global_step"] == 1
    late = {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    assert forks.run(fit("run", "--resume=auto"), tmp_path, **late).code == 0
    assert_same_end(whole, tmp_path / "run")


def test_a_time_limit_within_a_step_ends_the_run_after_it(
    whole: Path, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    """As trainer.max_time does it: at any micro-batch."""
    ended = forks.run(fit("run", "--save_every=50", *strike("on_train_batch_start", 2, "stop")), tmp_path)
    assert ended.code == 0, ended.err
    assert load(tmp_path / "run")["global_step"] == 3
    assert forks.run(fit("run", "--resume=auto"), tmp_path).code == 0
    first, second = load(whole), load(tmp_path / "run")
    for name, weight in first["state_dict"].items():
        assert weight.equal(second["state_dict"][name]), name


def test_two_ranks_stop_together_where_one_gets_the_signal_and_go_on_to_the_same_end(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    few = ["--data.batch_size=1", "--trainer.max_steps=5"]
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    assert [ended.code for ended in forks.run_ranks(fit("whole", *few, *two), tmp_path, 2)] == [0, 0]
    struck = strike("on_train_batch_start", 2, "SIGTERM", rank=1)
    ended = run_ranks(fit("run", *few, "--save_every=50", *struck), tmp_path)
    assert ended.code == 143, ended.err
    assert ended.out.count("SIGTERM: stopped after step 3, saved in run/checkpoints/last.ckpt") == 1
    assert load(tmp_path / "run")["global_step"] == 3
    rest = forks.run_ranks(fit("run", *few, *two, "--resume=auto"), tmp_path, 2)
    assert [ended.code for ended in rest] == [0, 0], rest
    assert_same_end(tmp_path / "whole", tmp_path / "run")
