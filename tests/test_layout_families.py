"""Every layout, over every family of architectures, gives what scoring one sequence at a time gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from layout_families import PAIRS, layout_of, one_at_a_time, table, written_table
from tiny_families import FAMILIES, PADDED_ONLY
from tiny_models import tiny_model
from torch import Tensor, nn

from orpo_lightning import layouts
from orpo_lightning.batching import PairBatch, TokenizedPair, lay_flat, pad_pairs
from orpo_lightning.batching.shared_prefix import KEYWORD
from orpo_lightning.layouts import choose_layout
from orpo_lightning.scoring import score_targets, take_apart

FOUND_BY_THE_CHECK_ALONE = {"doge", "phimoe"}


def lay_flat_as_if_long(pairs: list[TokenizedPair]) -> PairBatch:
    """Lay pairs out so that they get the kernel of long ones."""
    batch = lay_flat(pairs)
    batch.model_inputs[KEYWORD].derived["short"] = False
    return batch


LAYOUTS = {
    "padded": partial(pad_pairs, pad_id=0),
    "shared_prefix": lay_flat,
    "shared_prefix, long pairs": lay_flat_as_if_long,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layouts_give_the_log_probabilities_and_gradients_of_one_sequence_at_a_time(family: str) -> None:
    model = tiny_model(family)
    scorer = take_apart(model)
    assert choose_layout("auto", scorer).value == "shared_prefix"
    wanted, wanted_grads = with_gradients(model, one_at_a_time(model, PAIRS))
    for layout, collate in LAYOUTS.items():
        found, grads = with_gradients(model, score_targets(scorer, collate(PAIRS))[0])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert grads.keys() == wanted_grads.keys()
        size = torch.stack([grad.norm() for grad in wanted_grads.values()]).norm()
        for name, grad in wanted_grads.items():
            # Some gradients are zero but for rounding: that of a bias that shifts all scores alike.
            assert (grads[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7 * size, f"{layout}: {name}"


def with_gradients(model: nn.Module, logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probabilities, and the gradients of a sum of them in which each has a weight of its own."""
    coefficients = torch.linspace(-1, 1, len(logps)).sin()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    grads = torch.autograd.grad((coefficients * logps).sum(), list(named.values()), allow_unused=True)
    return logps.detach(), {name: g for name, g in zip(named, grads, strict=True) if g is not None}


@pytest.mark.parametrize("family", sorted(PADDED_ONLY.keys() - FOUND_BY_THE_CHECK_ALONE))
def test_an_architecture_beyond_plain_attention_is_padded_for_a_reason_in_its_config(family: str) -> None:
    choice = layout_of(family)
    assert choice.value == "padded"
    reason = layouts.unfit(tiny_model(family))
    assert reason is not None
    assert reason.startswith(f"{family}: ")
    assert choice.reason == f"no shared prefixes: {reason}"


@pytest.mark.parametrize("family", PADDED_ONLY)
def test_the_self_check_alone_finds_it_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "unfit", lambda model: None)
    choice = choose_layout("auto", take_apart(tiny_model(family)))
    assert choice.value == "padded"


def test_the_readmes_table_is_what_is_found_here() -> None:
    assert written_table() == table()
