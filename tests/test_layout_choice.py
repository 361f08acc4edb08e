"""Which layout a run gets: chosen by the model, proved on a batch, said once, and never silently wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from layout_families import PAIRS, one_at_a_time
from tiny_models import tiny_model
from torch import nn
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.batching import lay_flat, pad_pairs
from orpo_lightning.callbacks import RunHeader
from orpo_lightning.errors import UsageError
from orpo_lightning.layouts import choose_layout, self_check
from orpo_lightning.scoring import Scorer, score, score_targets, take_apart
from orpo_lightning.shared_attention import interface, rows, slices
from orpo_lightning.shared_attention.base import Recipe


@pytest.fixture(autouse=True)
def _no_backend_left_out() -> Iterator[None]:
    """Give other tests all backends back."""
    yield
    interface.exclude(frozenset())


def blind(query: Any, key: Any, value: Any, plan: Any, recipe: Recipe) -> Any:
    """A backend that knows nothing of pairs: the whole row is one sequence."""
    key, value = rows._as_many_heads(query, key, value)
    output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=recipe.scale)
    return output.transpose(1, 2)


def without_window(query: Any, key: Any, value: Any, plan: Any, recipe: Recipe) -> Any:
    """A backend that forgets the window."""
    return slices.attend(query, key, value, plan, recipe._replace(window=None))


def test_plain_attention_gets_shared_prefixes_and_the_reason_names_the_backend() -> None:
    model = tiny_model("llama")
    choice = choose_layout("auto", take_apart(model))
    assert choice.value == "shared_prefix"
    assert choice.reason.startswith("equal to padded on a test batch; attention by slices: torch's flash")
    assert model.config._attn_implementation == "shared_prefix_sdpa"
    assert choose_layout("auto", take_apart(model)).value == "shared_prefix"
    assert model.config._attn_implementation == "shared_prefix_sdpa"


def test_padded_rows_that_were_asked_for_leave_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    assert choose_layout("padded", take_apart(model)) == ("padded", "set by the user")
    assert model.config._attn_implementation == "sdpa"


def test_shared_prefixes_that_cannot_be_are_an_error_where_they_were_asked_for() -> None:
    message = r"^data\.layout shared_prefix cannot be used with this model: bloom: ALiBi .*; use padded$"
    with pytest.raises(UsageError, match=message):
        choose_layout("shared_prefix", take_apart(tiny_model("bloom")))


def test_a_backend_that_computes_something_else_is_done_without_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(interface._ATTEND, "slices", blind)
    model = tiny_model("llama")
    scorer = take_apart(model)
    with caplog.at_level(logging.WARNING):
        assert choose_layout("auto", scorer).value == "shared_prefix"
    assert "does without slices: log-probabilities differ from the padded layout's by" in caplog.text
    torch.testing.assert_close(score_targets(scorer, lay_flat(PAIRS))[0], one_at_a_time(model, PAIRS))


def test_a_window_that_is_forgotten_is_found_although_no_test_batch_is_that_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(interface._ATTEND, "rows", without_window)
    model = tiny_model("mistral", sliding_window=4096)
    choice = choose_layout("auto", take_apart(model))
    assert choice.value == "padded"
    assert "with a window of 4 tokens, log-probabilities differ" in choice.reason
    assert (model.config.sliding_window, model.config._attn_implementation) == (4096, "sdpa")


def test_where_no_backend_is_right_the_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in interface._ATTEND:
        monkeypatch.setitem(interface._ATTEND, name, blind)
    model = tiny_model("llama")
    choice = choose_layout("auto", take_apart(model))
    assert choice.value == "padded"
    assert choice.reason.startswith(
        "no shared prefixes: log-probabilities differ from the padded layout's by"
    )
    assert model.config._attn_implementation == "sdpa"
    assert interface.excluded() == frozenset()


def test_a_wrong_gradient_is_found_though_the_log_probabilities_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_keys_gradient(query: Any, key: Any, value: Any, *rest: Any) -> Any:
        return rows.attend(query, key.detach(), value, *rest)

    for name in interface._ATTEND:
        monkeypatch.setitem(interface._ATTEND, name, without_keys_gradient)
    choice = choose_layout("auto", take_apart(tiny_model("llama")))
    assert "gradients differ from the padded layout's" in choice.reason


def test_the_check_leaves_modes_gradients_and_the_random_state_as_they_were() -> None:
    model = tiny_model("llama")
    model.train()
    model.model.layers[0].eval()
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    scorer = take_apart(model)
    interface.install(model)
    assert self_check(scorer) is None
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_a_trainer_validates_in_inference_mode_gradients_are_checked_all_the_same() -> None:
    scorer = take_apart(tiny_model("llama"))
    with torch.inference_mode():
        assert choose_layout("auto", scorer).value == "shared_prefix"


def test_a_model_that_cannot_be_taken_apart_is_scored_in_flat_rows_as_well() -> None:
    model = tiny_model("llama")
    scorer = Scorer(model, why_full_logits="test")
    assert choose_layout("auto", scorer).value == "shared_prefix"
    torch.testing.assert_close(score_targets(scorer, lay_flat(PAIRS))[0], one_at_a_time(model, PAIRS))


@pytest.mark.parametrize("apart", [True, False])
def test_a_routers_loss_is_that_of_whole_sequences_without_padding_in_both_layouts(apart: bool) -> None:
    model = tiny_model("mixtral")
    scorer = take_apart(model) if apart else Scorer(model, why_full_logits="test")
    choose_layout("shared_prefix", scorer)
    flat, padded = score(scorer, lay_flat(PAIRS)), score(scorer, pad_pairs(PAIRS, pad_id=0))
    logits = [
        model(input_ids=torch.tensor([pair.prompt + answer]), output_router_logits=True).router_logits
        for pair in PAIRS
        for answer in (pair.chosen, pair.rejected)
    ]
    chances = torch.cat([torch.cat(layers) for layers in logits]).softmax(1)  # tokens × experts
    picked = torch.zeros_like(chances).scatter(1, chances.topk(2).indices, 1.0)
    expected = 4 * (picked.mean(0) * chances.mean(0)).sum()
    torch.testing.assert_close(padded.router_loss, expected)
    torch.testing.assert_close(flat.router_loss, expected)


def test_pair_sums_and_counts_are_those_of_padded_rows() -> None:
    scorer = take_apart(tiny_model("llama"))
    choose_layout("shared_prefix", scorer)
    flat, padded = score(scorer, lay_flat(PAIRS)), score(scorer, pad_pairs(PAIRS, pad_id=0))
    for name, one, other in zip(flat._fields, flat, padded, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, msg=name)


# In a run


ROWS = [{"prompt": f"count {k}", "chosen": f" up {k}", "rejected": f" down {k}"} for k in range(4)]


class Words(PreferenceDataModule):
    """Four pairs."""

    def load_rows(self, split: str) -> Any:
        """Return them for training only."""
        return ROWS if split == "train" else ()


class Foreign(lightning.LightningModule):
    """Somebody's module that knows padded batches only."""

    def __init__(self) -> None:
        """Hold one weight."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return a loss that needs rows."""
        return self.weight * batch.model_inputs["attention_mask"].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return any."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_header_says_the_layout_and_the_backend_once_with_their_reasons(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    data = Words(tokenizer=tiny_base, max_length=64, cache_dir=str(tmp_path))
    module = PreferenceModule(tiny_base, lora_r=2)
    make_trainer(max_steps=1, callbacks=[RunHeader()]).fit(module, datamodule=data)
    rows_of_layout = [line for line in caplog.text.splitlines() if line.startswith("layout ")]
    assert len(rows_of_layout) == 1
    assert "shared_prefix (equal to padded on a test batch; attention by slices: torch" in rows_of_layout[0]


def test_validation_by_itself_runs_in_flat_rows_too(tiny_base: str, tmp_path: Path) -> None:
    class Held(Words):
        def load_rows(self, split: str) -> Any:
            return ROWS if split == "validation" else ()

    losses = []
    for layout in ("padded", "auto"):
        data = Held(tokenizer=tiny_base, max_length=64, layout=layout, cache_dir=str(tmp_path))
        module = PreferenceModule(tiny_base, lora_r=2, lora_init="gaussian")
        lightning.seed_everything(1)
        losses += make_trainer().validate(module, datamodule=data, verbose=False)
        assert [choice.value for choice in module._layouts.values()] == [
            "padded" if layout == "padded" else "shared_prefix"
        ]
    assert losses[1]["val/loss"] == pytest.approx(losses[0]["val/loss"], rel=1e-5)


def test_a_module_that_does_not_choose_gets_padded_rows_and_cannot_ask_for_others(
    tiny_base: str, tmp_path: Path
) -> None:
    def fit(layout: Any) -> None:
        data = Words(tokenizer=tiny_base, max_length=64, layout=layout, cache_dir=str(tmp_path))
        make_trainer(max_steps=1).fit(Foreign(), datamodule=data)

    fit("auto")
    with pytest.raises(UsageError, match=r"data\.layout: shared_prefix needs a module with choose_layout"):
        fit("shared_prefix")
    with pytest.raises(UsageError, match=r"data\.layout: expected auto or padded or shared_prefix, found"):
        fit("flat")


def test_flat_rows_of_a_loader_that_did_not_ask_are_scored_right_or_not_at_all(
    tiny_base: str, tmp_path: Path
) -> None:
    module = PreferenceModule(tiny_base, lora_r=2, lora_init="gaussian")
    module.configure_model()
    module.model.eval()
    wanted = score(take_apart(module.model), pad_pairs(PAIRS, pad_id=0))
    torch.testing.assert_close(module(lay_flat(PAIRS)).chosen_sum, wanted.chosen_sum)
    tiny_model("bloom").save_pretrained(tmp_path / "bloom")
    unfit = PreferenceModule(str(tmp_path / "bloom"), lora_r=2, lora_targets="all-linear")
    unfit.configure_model()
    with pytest.raises(UsageError, match="ALiBi"):
        unfit(lay_flat(PAIRS))
