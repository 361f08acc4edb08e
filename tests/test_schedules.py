"""Warm-up and decay by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from orpo_lightning.schedules import make_schedule, parameter_groups, warmup_steps


def rates(schedule: Any, warmup: float, total: int) -> list[float]:
    """Return the factor of the learning rate at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_schedule(optimizer, schedule, warmup, total)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [(0, 100, 0), (0.1, 100, 10), (0.1, 15, 2), (7, 100, 7), (1, 100, 1), (7.0, 9, 7)],
)
def test_warm_up_is_steps_or_a_share_rounded_up(warmup: float, total: int, steps: int) -> None:
    assert warmup_steps(warmup, total) == steps


@pytest.mark.parametrize("warmup", [-1, 1.5])
def test_a_warm_up_that_is_neither_is_refused(warmup: float) -> None:
    with pytest.raises(ValueError, match="warmup"):
        warmup_steps(warmup, 10)


def test_every_schedule_rises_linearly_and_then_follows_its_name() -> None:
    rise = [0.0, 0.25, 0.5, 0.75]
    assert rates("constant", 4, 8) == pytest.approx([*rise, 1, 1, 1, 1])
    assert rates("linear", 4, 8) == pytest.approx([*rise, 1, 0.75, 0.5, 0.25])
    cosine = [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates("cosine", 4, 8) == pytest.approx([*rise, *cosine])
    inverse = [math.sqrt(4 / (4 + k)) for k in range(4)]
    assert rates("inverse_sqrt", 4, 8) == pytest.approx([*rise, *inverse])


def test_parameters_are_grouped_by_what_they_are() -> None:
    from tiny_models import tiny_model

    model = tiny_model("llama")
    groups = {group["name"]: group for group in parameter_groups(model, model.named_parameters())}
    assert [tuple(p.shape) for p in groups["embeddings"]["params"]] == [(128, 64), (128, 64)]
    assert len(groups["matrices"]["params"]) == 14
    assert all(p.ndim == 1 for p in groups["vectors"]["params"])
    assert groups["vectors"]["weight_decay"] == 0.0
    assert "weight_decay" not in groups["matrices"]
