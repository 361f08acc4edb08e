"""The plan against the real peak of a real training step, counted tensor by tensor on the CPU."""

from __future__ import annotations

import gc

import pytest
import torch
from live_memory import LiveMemory
from peak_of_a_step import FLAT, SHAPES, WAYS, Case, compare

LORA, DROPOUT = WAYS[0], WAYS[1]


def test_the_counter_sees_what_lives_and_what_is_freed() -> None:
    held = torch.zeros(1000)
    with LiveMemory([held]) as memory:
        assert memory.now == 4000
        first = torch.ones(500, dtype=torch.float64)
        view = first[:10]
        del first
        assert memory.now == 8000  # the view keeps it
        second = view + 1
        del view
        gc.collect()
        assert memory.now == 4000 + second.untyped_storage().nbytes()
    assert memory.peak == 8000 + 80


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plan_is_within_a_fiftieth_of_the_measured_peak(shape: str, checkpointing: bool) -> None:
    measured, planned = compare(SHAPES[shape], DROPOUT, checkpointing=checkpointing)
    assert planned == pytest.approx(measured, rel=0.02)


# Of ways that differ little one is enough here; docs/memory.md has them all.
_ALIKE = ("LoRA with dropout, fp32", "LoRA, bf16-mixed", "NF4, fp32", "fp32 base, bf16-mixed")


@pytest.mark.parametrize(
    "case", [case for case in WAYS if case.name not in _ALIKE], ids=lambda case: case.name
)
def test_so_it_is_for_every_way_to_train_with_recomputed_layers(case: Case) -> None:
    if case.optimizer.galore:
        pytest.importorskip("galore_torch")
    measured, planned = compare(SHAPES["square"], case, checkpointing=True)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    "name", ["NF4, bf16-mixed", "eager attention", "all weights, bf16-mixed", "GaLore by layers, fp32"]
)
def test_and_with_kept_ones(name: str) -> None:
    if "GaLore" in name:
        pytest.importorskip("galore_torch")
    case = next(case for case in WAYS if case.name == name)
    measured, planned = compare(SHAPES["square"], case, checkpointing=False)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", ["deep, padded", "long and wide"])
@pytest.mark.parametrize("case", FLAT, ids=lambda case: case.name)
def test_shared_prefixes_are_planned_within_a_fiftieth_too(
    case: Case, shape: str, checkpointing: bool
) -> None:
    # Pairs of 84 tokens attend as padded rows, those of 416 in slices of the row.
    measured, planned = compare(SHAPES[shape], case, checkpointing=checkpointing)
    assert planned == pytest.approx(measured, rel=0.02)


def test_updates_by_layers_save_the_gradients() -> None:
    pytest.importorskip("galore_torch")
    cases = {case.name: case for case in WAYS}
    whole, layerwise = (cases[name] for name in ("GaLore, fp32", "GaLore by layers, fp32"))
    shape = SHAPES["deep, padded"]
    measured = [compare(shape, case, checkpointing=True) for case in (whole, layerwise)]
    for found, planned in measured:
        assert planned == pytest.approx(found, rel=0.1)
    # 4 bytes a weight; what is left of it is the largest one's gradient, at work on the head.
    weights = 4 * (2 * 1000 * 96 + 8 * (4 * 96 * 96 * 2 // 3 + 3 * 96 * 288))
    assert measured[0][0] - measured[1][0] > 0.6 * weights


def test_what_llama_keeps_follows_from_its_operations_to_a_hundredth() -> None:
    measured, planned = compare(SHAPES["square"], LORA, checkpointing=False)
    assert planned == pytest.approx(measured, rel=0.01)
