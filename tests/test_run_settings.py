"""What may differ between a checkpoint and the run that goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.run_settings import changed_model, changed_options, recount, same_place


def split(batch_size: int, accumulate: int, world_size: int = 1, **more: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "accumulate": accumulate, "world_size": world_size, **more}


def test_the_order_of_target_names_is_no_difference() -> None:
    saved, here = {"lora_targets": ["q_proj", "v_proj"]}, {"lora_targets": ["v_proj", "q_proj"]}
    assert changed_model(saved, here) == []
    assert changed_model(saved, {"lora_targets": ["q_proj"]}) != []


def test_a_base_in_another_folder_is_left_to_the_comparison_of_weights(tmp_path: Path) -> None:
    assert changed_model({"base_model": "/old"}, {"base_model": str(tmp_path)}) == []
    assert changed_model({"base_model": "a/b"}, {"base_model": "a/c"}) == ["model.base_model a/b became a/c"]


def test_options_are_what_is_no_part_of_the_model() -> None:
    saved, here = {"lora_r": 4, "warmup": 0.1, "gone": 1}, {"lora_r": 8, "warmup": 5, "new": 1}
    assert changed_options(saved, here) == ["warmup 0.1 became 5"]


@pytest.mark.parametrize(
    ("saved", "here", "seen"),
    [
        (split(2, 4, seen=12), split(2, 4), 12),
        (split(2, 4, 2, seen=12), split(2, 8, 1), 24),  # 3 steps of 16 pairs
        (split(2, 4, 1, seen=12), split(1, 2, 4), 6),  # 3 steps of 8
        (split(2, 4, 1, seen=12), split(4, 4, 1), None),  # 24 pairs are one and a half steps of 16
        (split(2, 4, 1, seen=8), split(4, 4, 1), 4),
        (split(2, 4, 1, seen=10), split(2, 8, 1), None),  # within a step
        (split(2, 4, seen=0), split(3, 5), 0),
    ],
)
def test_a_place_is_found_again_by_the_pairs_before_it(
    saved: dict[str, Any], here: dict[str, Any], seen: int | None
) -> None:
    assert same_place(saved, here) == seen


def counts(ready: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": ready, "processed": ready, "completed": completed}


def test_lightnings_counts_are_told_in_the_new_micro_batches() -> None:
    progress = {"total": counts(26, 25), "current": counts(12, 11)}
    recount({"epoch_loop.batch_progress": progress}, split(2, 4, 2), split(2, 8, 1))
    assert progress == {"total": counts(52, 51), "current": counts(24, 23)}


def test_the_short_last_step_of_an_epoch_counts_as_whole() -> None:
    progress = {"total": counts(13, 13), "current": counts(13, 13)}
    recount({"epoch_loop.batch_progress": progress}, split(2, 4), split(4, 2))
    assert progress["current"] == counts(7, 7)
