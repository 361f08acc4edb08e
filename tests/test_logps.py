"""The chunked head against the whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orpo_lightning.head import Head
from orpo_lightning.logps import chunk_rows, rows_logps, target_logps

HIDDEN, VOCABULARY, ROWS = 16, 50, 23


class ByRows(nn.Linear):
    """A linear layer of another class, as a quantised one is: it does not go in blocks."""


def head_of(kind: str, *, frozen: bool) -> Head:
    """Return a vocabulary projection with what some architecture puts behind it."""
    torch.manual_seed(3)
    layer = ByRows(HIDDEN, VOCABULARY, bias=kind == "bias").double().requires_grad_(not frozen)
    return Head(layer, 0.0625 if kind == "scale" else 1.0, 0.7 if kind == "soft-cap" else None)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, targets, and the gradient that comes from above."""
    torch.manual_seed(4)
    hidden = torch.randn(ROWS, HIDDEN, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(VOCABULARY, (ROWS,)), torch.randn(ROWS, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["plain", "bias", "soft-cap", "scale"])
@pytest.mark.parametrize("rows", [1, 7, 23, 100])
@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_give_the_log_probabilities_and_gradients_of_the_whole(
    kind: str, rows: int, frozen: bool
) -> None:
    head = head_of(kind, frozen=frozen)
    hidden, ids, above = inputs()
    whole = rows_logps(hidden, ids, head)
    wanted = [hidden] if frozen else [hidden, *head.projection.parameters()]
    expected = torch.autograd.grad(whole, wanted, above)
    logps = target_logps(hidden, ids, head, rows=rows)
    found = torch.autograd.grad(logps, wanted, above)
    assert torch.allclose(logps, whole, rtol=1e-12, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_is_run_once_per_chunk_and_never_on_more_rows() -> None:
    head = head_of("plain", frozen=True)
    sizes: list[int] = []
    head.projection.register_forward_pre_hook(lambda _, states: sizes.append(states[0].shape[0]))
    hidden, ids, above = inputs()
    target_logps(hidden, ids, head, rows=10).backward(above)
    assert sizes == [10, 10, 3]


def test_nothing_of_vocabulary_size_is_kept_for_the_backward_pass() -> None:
    head = head_of("plain", frozen=True)
    hidden, ids, _ = inputs()
    kept: list[tuple[int, ...]] = []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        target_logps(hidden, ids, head, rows=100)
    assert kept
    # Chunks are freed within the forward pass; what outlives it is saved last.
    assert kept[-1] == (ROWS, HIDDEN)


def test_a_second_derivative_through_a_frozen_head_is_refused_rather_than_wrong() -> None:
    hidden, ids, _ = inputs()
    logps = target_logps(hidden, ids, head_of("plain", frozen=True), rows=10)
    (gradient,) = torch.autograd.grad(logps.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_target_gives_an_empty_result_that_still_reaches_the_graph() -> None:
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    logps = target_logps(hidden, torch.zeros(0, dtype=torch.int64), Head(nn.Identity()), rows=4)
    assert logps.shape == (0,)
    assert logps.requires_grad


@pytest.mark.parametrize("kind", ["plain", "bias", "soft-cap", "scale"])
def test_no_target_gives_a_trained_head_a_gradient_of_zeros(kind: str) -> None:
    head = head_of(kind, frozen=False)
    hidden = torch.zeros(0, HIDDEN, dtype=torch.float64, requires_grad=True)
    logps = target_logps(hidden, torch.zeros(0, dtype=torch.int64), head, rows=4)
    assert logps.shape == (0,)
    logps.sum().backward()
    gradients = [parameter.grad for parameter in head.projection.parameters()]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_log_probabilities_are_fp32_even_of_half_precision_logits() -> None:
    logits = torch.randn(5, 7, dtype=torch.bfloat16)
    logps = rows_logps(logits, torch.arange(5), nn.Identity())
    assert logps.dtype == torch.float32
    assert torch.allclose(logps, logits.float().log_softmax(1)[torch.arange(5), torch.arange(5)])


def test_chunks_shrink_with_the_vocabulary() -> None:
    assert chunk_rows(32_000) == 128 * 2**20 // (4 * 32_000)
    assert chunk_rows(10**9) == 16
