"""Every backend of attention over shared prefixes that a CPU can run, against attention written out."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attention_cases import (
    CASES,
    RAGGED,
    by_backend,
    make_inputs,
    make_plan,
    output_and_gradients,
    written_out,
)
from torch import Tensor

from orpo_lightning.hardware import Device
from orpo_lightning.shared_attention import packed, rows, slices
from orpo_lightning.shared_attention.base import Recipe, same_dtype
from orpo_lightning.shared_attention.choice import Needs, choose_backend, find_backends
from orpo_lightning.shared_attention.interface import _ATTEND


def kernel_by_hand(q: Tensor, k: Tensor, v: Tensor, *where: Any) -> Tensor:
    """What a variable-length FlashAttention computes: causal, aligned to the end of the keys."""
    query_ends, key_ends, longest_query, longest_key, recipe = where
    sizes, key_sizes = query_ends.diff(), key_ends.diff()
    assert (longest_query, longest_key) == (sizes.max(), key_sizes.max())
    assert q.shape[-1] == k.shape[-1] == v.shape[-1]
    assert q.shape[-1] % 8 == 0
    left, right = packed._window(recipe)
    groups = q.shape[1] // k.shape[1]
    results = []
    for i, (rows_, keys) in enumerate(zip(sizes.tolist(), key_sizes.tolist(), strict=True)):
        own = slice(query_ends[i], query_ends[i + 1])
        theirs = slice(key_ends[i], key_ends[i + 1])
        scores = torch.einsum("qhd,khd->hqk", q[own], k[theirs].repeat_interleave(groups, 1)) * recipe.scale
        if recipe.softcap:
            scores = recipe.softcap * torch.tanh(scores / recipe.softcap)
        gap = torch.arange(rows_)[:, None] + keys - rows_ - torch.arange(keys)
        hidden = (gap < -right) | (gap > left if left >= 0 else False)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(2)
        results.append(torch.einsum("hqk,khd->qhd", weights, v[theirs].repeat_interleave(groups, 1)))
    return torch.cat(results)


BACKENDS = {
    "slices": (slices.attend, {"window", "softcap"}),
    "rows": (rows.attend, set()),
    "packed": (partial(packed.attend_packed, kernel_by_hand), {"sinks"}),
}
RUNS = [
    (backend, case)
    for backend, (_, lacks) in BACKENDS.items()
    for case, settings in CASES.items()
    if not lacks & settings.keys()
]


@pytest.mark.parametrize(("backend", "case"), RUNS)
def test_a_backend_gives_the_output_and_all_gradients_of_attention_written_out(
    backend: str, case: str
) -> None:
    leaves, recipe = make_inputs(case, RAGGED)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = output_and_gradients(partial(written_out, exact, RAGGED, recipe), exact)
    found = by_backend(BACKENDS[backend][0], leaves, make_plan(RAGGED), recipe)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_flex_attention_gives_the_output_of_attention_written_out(case: str) -> None:
    leaves, recipe = make_inputs(case, RAGGED)
    query, key, value, *sinks = (leaf.detach() for leaf in leaves)  # on a CPU it has no backward pass
    ready = Recipe(**recipe, sinks=sinks[0] if sinks else None)
    found = packed.attend_flex(query, key, value, make_plan(RAGGED), ready)
    torch.testing.assert_close(found, written_out(leaves, RAGGED, recipe).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["narrow values", "wide values", "all"])
def test_flex_attention_is_called_as_its_kernels_for_training_can_run(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, calls = packed._flex("cpu"), []

    def spy(*tensors: Tensor, **settings: Any) -> Any:
        calls.append((min(tensor.shape[-1] for tensor in tensors), settings["kernel_options"]))
        return function(*tensors, **settings)

    monkeypatch.setattr(packed, "_flex", lambda device: spy)
    leaves, recipe = make_inputs(case, RAGGED)
    query, key, value, *sinks = (leaf.detach() for leaf in leaves)
    ready = Recipe(**recipe, sinks=sinks[0] if sinks else None)
    assert packed.attend_flex(query, key, value, make_plan(RAGGED), ready).shape[-1] == value.shape[-1]
    assert calls == [(16, {"FORCE_USE_FLEX_ATTENTION": True})]


def test_grouped_heads_are_repeated_where_cuda_would_write_their_scores_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def repeats(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return rows._takes_equal_heads(SimpleNamespace(device=torch.device("cuda"), dtype=dtype))  # type: ignore[arg-type]

    assert not repeats(torch.bfloat16, (8, 0))
    assert repeats(torch.float32, (9, 0))
    assert repeats(torch.float16, (7, 5))
    assert not rows._takes_equal_heads(torch.zeros(1))


def test_packages_are_told_of_a_deterministic_run() -> None:
    recipe = Recipe(0.5)
    assert "deterministic" not in packed._flash_settings(recipe)
    torch.use_deterministic_algorithms(True)
    try:
        assert packed._flash_settings(recipe)["deterministic"] is True
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", ["slices", "rows"])
def test_a_backend_works_in_half_and_in_double_precision(backend: str) -> None:
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float64, 1e-12)):
        leaves, recipe = make_inputs("grouped heads", RAGGED, dtype)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        wanted = output_and_gradients(partial(written_out, exact, RAGGED, recipe), exact)
        found = by_backend(BACKENDS[backend][0], leaves, make_plan(RAGGED), recipe)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def test_every_backend_that_can_be_chosen_is_there() -> None:
    assert find_backends("cpu") == {"slices"}
    assert "flex_attention" in find_backends("cuda")
    assert {"rows"} | find_backends("cpu") | find_backends("cuda") <= _ATTEND.keys()


def test_dropout_of_weights_keeps_their_mean_and_is_off_where_it_is_zero() -> None:
    leaves, recipe = make_inputs("plain", ((64, 8, 8),))
    plan = make_plan(((64, 8, 8),))
    torch.manual_seed(0)
    runs = [rows.attend(*leaves, plan, Recipe(**recipe, dropout=0.5)) for _ in range(400)]
    assert not torch.equal(runs[0], runs[1])
    mean = torch.stack(runs).mean(0)
    torch.testing.assert_close(mean, rows.attend(*leaves, plan, Recipe(**recipe)), rtol=0, atol=0.3)


A100, T4, H100 = Device("cuda", "A100", (8, 0)), Device("cuda", "T4", (7, 5)), Device("cuda", "H100", (9, 0))
VOLTA, PASCAL = Device("cuda", "V100", (7, 0)), Device("cuda", "P100", (6, 0))
CPU, APPLE = Device("cpu", "CPU"), Device("mps", "Apple")
HALF, SINGLE = Needs(torch.bfloat16, 128), Needs(torch.float32, 128)
EVERY = {"slices", "flash_attn_3", "flash_attn_2", "torch_varlen", "flex_attention"}
TORCH_ONLY = {"slices", "torch_varlen", "flex_attention"}

TABLE: list[tuple[Device, Needs, set[str], str, str]] = [
    (CPU, SINGLE, EVERY, "slices", "flash kernel for CPU"),
    (CPU, HALF._replace(sinks=True), EVERY, "slices", "flash kernel for CPU"),
    (CPU, SINGLE._replace(window=True), EVERY, "rows", "no answer to a window"),
    (CPU, SINGLE._replace(window=True, softcap=True), EVERY, "rows", "a window and a soft-cap"),
    (CPU, SINGLE._replace(dropout=True), EVERY, "rows", "dropout"),
    (CPU, SINGLE._replace(short=True), EVERY, "rows", "fewer than 96 tokens"),
    (A100, HALF._replace(short=True), EVERY, "flash_attn_2", "flash-attn is installed"),
    (CPU, SINGLE, EVERY - {"slices"}, "rows", "this torch has no flash kernel"),
    (APPLE, SINGLE, EVERY, "rows", "MPS"),
    (H100, HALF, EVERY, "flash_attn_3", "Hopper"),
    (A100, HALF, EVERY, "flash_attn_2", "flash-attn is installed"),
    (Device("cuda", "B200", (10, 0)), HALF, EVERY, "flash_attn_2", "flash-attn is installed"),
    (A100, HALF._replace(window=True), TORCH_ONLY, "torch_varlen", "torch's own FlashAttention"),
    (A100, HALF._replace(softcap=True), TORCH_ONLY, "flex_attention", "no soft-cap"),
    (A100, HALF._replace(softcap=True), EVERY, "flash_attn_2", "flash-attn is installed"),
    (A100, HALF._replace(sinks=True), EVERY, "flex_attention", "sinks"),
    (A100, HALF._replace(width=288), EVERY, "flex_attention", "256"),
    (A100, HALF._replace(dropout=True), EVERY, "rows", "dropout"),
    (A100, SINGLE, EVERY, "flex_attention", "half precision, this is float32"),
    (A100, HALF, {"slices", "flex_attention"}, "flex_attention", "neither package flash-attn"),
    (A100, HALF, set(), "rows", "no FlexAttention either"),
    (T4, HALF._replace(dtype=torch.float16), EVERY, "flex_attention", "8.0, this is 7.5"),
    (VOLTA, SINGLE, EVERY, "flex_attention", "half precision"),
    (PASCAL, SINGLE, EVERY, "rows", "half precision"),
]


@pytest.mark.parametrize(("device", "needs", "available", "backend", "because"), TABLE)
def test_the_backend_that_wastes_least_among_those_that_compute_the_right_thing(
    device: Device, needs: Needs, available: set[str], backend: str, because: str
) -> None:
    choice = choose_backend(device, needs, available)
    assert choice.value == backend
    assert because in choice.reason


def test_under_autocast_all_inputs_take_its_dtype_and_else_the_widest_of_their_own() -> None:
    half, single = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    assert {t.dtype for t in same_dtype(half, single)} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {t.dtype for t in same_dtype(single, half)} == {torch.bfloat16}
        assert {t.dtype for t in same_dtype(single.double(), half.double())} == {torch.float64}


def test_a_kernel_is_found_too_where_it_is_first_asked_for_under_autocast() -> None:
    """As in a process that trains in bf16-mixed: nothing asked before its first step."""
    slices.is_available.cache_clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert slices.is_available()
