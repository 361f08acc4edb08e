"""Every layout, over every family of architectures, gives what scoring one sequence at a time gives."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from layout_families import PAIRS, layout_of, one_at_a_time, table, written_table
from tiny_families import FAMILIES, PADDED_ONLY
from tiny_models import tiny_model

from orpo_lightning import layouts
from orpo_lightning.batching import lay_flat, pad_pairs
from orpo_lightning.layouts import choose_layout
from orpo_lightning.scoring import score_targets, take_apart

LAYOUTS = {"padded": partial(pad_pairs, pad_id=0), "shared_prefix": lay_flat}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layouts_give_the_log_probabilities_and_gradients_of_one_sequence_at_a_time(family: str) -> None:
    model = tiny_model(family)
    named = dict(model.named_parameters())
    wanted = one_at_a_time(model, PAIRS)
    coefficients = torch.linspace(-1, 1, len(wanted)).sin()
    wanted_grads = torch.autograd.grad((coefficients * wanted).sum(), named.values(), allow_unused=True)
    scorer = take_apart(model)
    assert choose_layout("auto", scorer).value == "shared_prefix"
    for layout, collate in LAYOUTS.items():
        found, _ = score_targets(scorer, collate(PAIRS))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad((coefficients * found).sum(), named.values(), allow_unused=True)
        for name, one, other in zip(named, grads, wanted_grads, strict=True):
            if other is None or one is None:
                assert one is other, f"{layout}: {name}"
                continue
            torch.testing.assert_close(
                one,
                other,
                rtol=1e-5,
                atol=1e-5 * other.abs().max().item(),
                msg=lambda m, n=name, la=layout: f"{la} {n} {m}",
            )


@pytest.mark.parametrize("family", PADDED_ONLY)
def test_an_architecture_beyond_plain_attention_is_padded_for_a_reason_in_its_config(family: str) -> None:
    choice = layout_of(family)
    assert choice.value == "padded"
    reason = layouts.unfit(tiny_model(family))
    assert reason is not None
    assert reason in choice.reason


@pytest.mark.parametrize("family", PADDED_ONLY)
def test_the_self_check_alone_finds_it_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "unfit", lambda model: None)
    choice = choose_layout("auto", take_apart(tiny_model(family)))
    assert choice.value == "padded"


def test_the_readmes_table_is_what_is_found_here() -> None:
    assert written_table() == table()
