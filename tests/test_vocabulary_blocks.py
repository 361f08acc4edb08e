"""The vocabulary in blocks against the whole of it, mostly in double precision."""

from __future__ import annotations

import pytest
import torch
from live_memory import LiveMemory
from tiny_models import tiny_model
from torch import Tensor, nn

from orpo_lightning import vocabulary_blocks
from orpo_lightning.head import Head
from orpo_lightning.logps import rows_logps, target_logps
from orpo_lightning.scoring import take_apart
from orpo_lightning.vocabulary_blocks import MOST_COLUMNS, block_columns, blocked_logps, takes_blocks

HIDDEN, ROWS = 8, 11


def head_of(vocabulary: int, *, bias: bool = False, scale: float = 1.0, double: bool = True) -> Head:
    torch.manual_seed(3)
    projection = nn.Linear(HIDDEN, vocabulary, bias=bias).requires_grad_(False)
    return Head(projection.double() if double else projection, scale)


def inputs(vocabulary: int, *, double: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, targets with the first and the last token among them, the gradient from above."""
    torch.manual_seed(4)
    dtype = torch.float64 if double else torch.float32
    hidden = torch.randn(ROWS, HIDDEN, dtype=dtype, requires_grad=True)
    ids = torch.randint(vocabulary, (ROWS,))
    ids[:2] = torch.tensor([0, vocabulary - 1])
    return hidden, ids, torch.randn(ROWS, dtype=dtype)


@pytest.mark.parametrize("vocabulary", [5, MOST_COLUMNS, MOST_COLUMNS + 1, 3 * MOST_COLUMNS + 77])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.0625])
def test_blocks_give_the_log_probabilities_and_gradients_of_the_whole(
    vocabulary: int, bias: bool, scale: float
) -> None:
    head = head_of(vocabulary, bias=bias, scale=scale)
    hidden, ids, above = inputs(vocabulary)
    whole = rows_logps(hidden, ids, head)
    (expected,) = torch.autograd.grad(whole, hidden, above)
    logps, jacobian = blocked_logps(hidden, ids, head, with_jacobian=True)
    assert jacobian is not None
    assert torch.allclose(logps, whole, rtol=1e-12, atol=1e-12)
    assert torch.allclose(above[:, None] * jacobian, expected, rtol=1e-10, atol=1e-12)
    alone, nothing = blocked_logps(hidden, ids, head, with_jacobian=False)
    assert nothing is None
    assert torch.equal(alone, logps)


@pytest.mark.parametrize("with_onednn", [True, False])
def test_single_precision_is_as_good_with_either_library(
    with_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_onednn and not vocabulary_blocks._has_onednn():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(vocabulary_blocks, "_has_onednn", lambda: with_onednn)
    head, double = head_of(5000, double=False), head_of(5000)
    hidden, ids, _ = inputs(5000, double=False)
    logps, jacobian = blocked_logps(hidden, ids, head, with_jacobian=True)
    exact, exact_jacobian = blocked_logps(hidden.double(), ids, double, with_jacobian=True)
    assert jacobian is not None
    assert exact_jacobian is not None
    assert (logps - exact).abs().max() < 2e-6
    assert (jacobian - exact_jacobian).abs().max() < 1e-6


def test_logits_that_rise_from_block_to_block_do_not_overflow() -> None:
    # Each block's logits are 200 above those before: exp of either end alone is 0 or infinite in fp32.
    projection = nn.Linear(1, 3 * MOST_COLUMNS, bias=False).requires_grad_(False)
    projection.weight.copy_((200.0 * (torch.arange(3 * MOST_COLUMNS) // MOST_COLUMNS - 1))[:, None])
    hidden = torch.tensor([[1.0], [-1.0]])
    logps, jacobian = blocked_logps(
        hidden, torch.tensor([3 * MOST_COLUMNS - 1, 0]), Head(projection), with_jacobian=True
    )
    assert torch.allclose(logps, torch.full((2,), MOST_COLUMNS, dtype=torch.float32).log().neg())
    assert jacobian is not None
    assert torch.equal(jacobian, torch.zeros(2, 1))


def test_a_certain_token_has_log_probability_zero_and_never_more() -> None:
    torch.manual_seed(0)
    head = head_of(4100, double=False)
    ids = torch.arange(0, 4100, 41)
    hidden = 3000 * head.projection.weight[ids]  # far out in the direction of its own row
    logps, _ = blocked_logps(hidden, ids, head, with_jacobian=False)
    assert logps.max() == 0.0


def test_no_more_than_a_block_of_logits_is_held() -> None:
    vocabulary, rows = 20 * MOST_COLUMNS, 64
    head, ids = head_of(vocabulary, double=False), torch.arange(rows)
    hidden = torch.randn(rows, HIDDEN)
    with LiveMemory([head.projection.weight, hidden, ids]) as memory:
        blocked_logps(hidden, ids, head, with_jacobian=True)
    # One block of logits, four tensors as large as the states, some of one column.
    assert memory.peak - memory.now <= 4 * rows * (MOST_COLUMNS + 4 * HIDDEN + 16)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 2048), (512, 2048), (513, 1024), (2500, 256), (10**7, 256)]
)
def test_blocks_get_narrower_with_the_states_so_that_their_logits_stay_in_the_cache(
    rows: int, columns: int
) -> None:
    assert block_columns(rows) == columns


def test_narrow_blocks_give_the_same() -> None:
    head, rows = head_of(700), 3000
    hidden = torch.randn(rows, HIDDEN, dtype=torch.float64)
    ids = torch.randint(700, (rows,))
    assert block_columns(rows) == 256
    logps, _ = blocked_logps(hidden, ids, head, with_jacobian=False)
    assert torch.allclose(logps, rows_logps(hidden, ids, head), rtol=1e-12, atol=1e-12)


def test_other_devices_and_dtypes_go_by_rows() -> None:
    head = head_of(50, double=False)
    assert takes_blocks(head, torch.zeros(2, HIDDEN))
    assert not takes_blocks(head, torch.zeros(2, HIDDEN, dtype=torch.bfloat16))
    assert not takes_blocks(head, torch.zeros(2, HIDDEN, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes_blocks(head, torch.zeros(2, HIDDEN))
    assert not takes_blocks(Head(head.projection.bfloat16()), torch.zeros(2, HIDDEN))


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_whole_head_is_not_called_where_blocks_serve(needs_gradient: bool) -> None:
    head = head_of(50)
    hidden, ids, _ = inputs(50)

    def called(*_: object) -> None:
        raise AssertionError("called")

    head.projection.register_forward_pre_hook(called)
    with torch.set_grad_enabled(needs_gradient):
        logps = target_logps(hidden, ids, head, rows=10)
    assert logps.requires_grad == needs_gradient


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_a_model_s_head_goes_in_blocks_unless_its_logits_are_bent_or_it_is_trained(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    head = take_apart(model).head
    assert head is not None
    states = torch.zeros(2, model.config.hidden_size)
    assert takes_blocks(head, states) == (family != "gemma2")
    assert head.scale == (0.5 if family == "cohere" else 1.0)
    model.get_output_embeddings().requires_grad_(True)
    assert not takes_blocks(head, states)
