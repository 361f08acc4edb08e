"""Warnings about a run that goes wrong come when they should, and once."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from orpo_lightning.callbacks import DivergenceWatch


def watch(values: list[dict[str, float]], log: pytest.LogCaptureFixture, every: int = 2) -> list[str]:
    """Return the warnings about values logged at every second step, looked at after each step."""
    log.clear()
    callback, trainer = DivergenceWatch(), SimpleNamespace(global_step=0, log_every_n_steps=every)
    trainer.callback_metrics = {}
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    with log.at_level(logging.WARNING, "orpo_lightning"):
        for step in range(1, every * len(values) + 1):
            trainer.global_step = step
            if step % every == 0:
                trainer.callback_metrics = values[step // every - 1]
            callback.on_train_batch_start(trainer, None, None, step)  # type: ignore[arg-type]
    return log.messages


def losses(*values: float) -> list[dict[str, Any]]:
    return [{"train/loss": value} for value in values]


def test_a_loss_far_above_its_median_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = watch(losses(*[2.0] * 10, 5.0, 6.0, 7.0), caplog)
    assert line.startswith("step 22: loss 5, usual is 2: the learning rate may be too high")


def test_it_is_told_again_after_things_were_well(caplog: pytest.LogCaptureFixture) -> None:
    assert len(watch(losses(*[2.0] * 10, 5.0, 2.0, 5.0), caplog)) == 2


def test_a_loss_that_is_not_a_number_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert len(watch(losses(*[2.0] * 10, float("nan")), caplog)) == 1


def test_what_is_not_a_number_is_not_remembered_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    nan = float("nan")
    (line,) = watch(losses(*[2.0] * 4, *[nan] * 4, *[2.0] * 5, 5.0), caplog)
    assert line.startswith("step 28: loss 5, usual is 2")
    caplog.clear()
    values = [{"train/logps/chosen": value} for value in (nan, -1.0, -1.1, -0.9, -1.0, -1.2, -2.5)]
    (line,) = watch(values, caplog)
    assert "chosen tokens -2.5, -1 at the start" in line


def test_ordinary_losses_and_few_of_them_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert watch(losses(*[3.0, 2.0, 3.9, 2.5] * 10), caplog) == []
    assert watch(losses(1.0, 9.0, 1.0, 9.0), caplog) == []


def test_chosen_answers_that_become_unlikely_are_told(caplog: pytest.LogCaptureFixture) -> None:
    values = [{"train/logps/chosen": value} for value in (-1.0, -1.1, -0.9, -1.0, -1.5, -1.9, -2.2, -3.0)]
    (line,) = watch(values, caplog)
    assert line.startswith("step 14: log-probability of chosen tokens -2.2, -1 at the start")


def test_a_resumed_watch_remembers(caplog: pytest.LogCaptureFixture) -> None:
    first = DivergenceWatch()
    first._losses.extend([2.0] * 10)
    second = DivergenceWatch()
    second.load_state_dict(first.state_dict())
    with caplog.at_level(logging.WARNING, "orpo_lightning"):
        second._watch_loss(30, 9.0)
    assert len(caplog.messages) == 1
