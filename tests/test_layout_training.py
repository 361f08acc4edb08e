"""Real training runs in flat rows: the weights of padded ones, whatever else is switched on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from layout_families import PAIRS
from tiny_models import tiny_model, tiny_tokenizer
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.batching import lay_flat
from orpo_lightning.batching.shared_prefix import KEYWORD
from orpo_lightning.layouts import choose_layout
from orpo_lightning.scoring import score_targets, take_apart
from orpo_lightning.shared_attention import interface


@pytest.fixture(autouse=True)
def _kernel_of_long_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "SHORT", 0)


class Words(PreferenceDataModule):
    """Ragged pairs, more than a step holds."""

    def load_rows(self, split: str) -> Iterator[dict[str, str]]:
        """Return the pairs of a split."""
        first, count = {"train": (0, 14), "validation": (50, 5), "test": (70, 0)}[split]
        for k in range(first, first + count):
            yield {
                "prompt": "count on " * (1 + k % 5) + str(k),
                "chosen": " up" * (1 + k % 4) + str(k),
                "rejected": " down" * (1 + k % 3) + str(k),
            }


class Recorder(lightning.Callback):
    """Keeps which layouts were trained and validated on."""

    def __init__(self) -> None:
        """Start empty."""
        self.layouts: set[str] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Take the layout of the batch down."""
        self.layouts.add("shared_prefix" if KEYWORD in batch.model_inputs else "padded")

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, *_: Any) -> None:
        """Take the layout of the batch down."""
        self.layouts.add("shared_prefix" if KEYWORD in batch.model_inputs else "padded")


def fit(
    base: str,
    layout: str,
    cache: Path,
    *,
    kind: type[PreferenceModule] = PreferenceModule,
    trainer: dict[str, Any] | None = None,
    resume: Path | None = None,
    **settings: Any,
) -> tuple[PreferenceModule, lightning.Trainer]:
    """Train an epoch, four steps of four pairs, and validate once."""
    lightning.seed_everything(5)
    defaults: dict[str, Any] = {"lora_r": 4, "lora_dropout": 0.0, "lora_init": "gaussian", "warmup": 0}
    module = kind(
        base,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        **(defaults | settings),
    )
    data = Words(tokenizer=base, layout=layout, batch_size=2, max_length=128, cache_dir=str(cache))
    recorder = Recorder()
    extra = trainer or {}
    callbacks = [recorder, *extra.pop("callbacks", [])]
    fitter = make_trainer(**({"max_steps": 4, "accumulate_grad_batches": 2, "callbacks": callbacks} | extra))
    fitter.fit(module, datamodule=data, ckpt_path=resume)
    assert recorder.layouts == {layout}
    return module, fitter


def weights(module: PreferenceModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True},
        {"quantization": "nf4"},
        {"lora_variant": "dora"},
        {"lora_r": 0},
        {"trainable_tokens": ["<|im_start|>"], "attention": "eager"},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_a_run_in_flat_rows_ends_with_the_weights_and_metrics_of_a_padded_one(
    tiny_base: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    padded, padded_trainer = fit(tiny_base, "padded", tmp_path, **settings)
    flat, flat_trainer = fit(tiny_base, "shared_prefix", tmp_path, **settings)
    assert_close(weights(flat), weights(padded), 1e-5)
    padding = [trainer.callback_metrics["train/padding"].item() for trainer in (flat_trainer, padded_trainer)]
    assert padding[0] == 0 < padding[1]
    for name, value in padded_trainer.callback_metrics.items():
        if "per_second" not in name and name != "train/padding":
            assert flat_trainer.callback_metrics[name].item() == pytest.approx(
                value.item(), rel=1e-4, abs=1e-5
            ), name


@pytest.mark.parametrize("family", ["stablelm", "gemma2", "gpt_oss", "mixtral"])
def test_layers_that_are_run_again_in_the_backward_pass_still_know_who_sees_whom(
    family: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tiny_model(family, tokenizer=tokenizer).save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    runs = [
        fit(str(tmp_path / family), layout, tmp_path, gradient_checkpointing=again, lora_targets="all-linear")
        for layout, again in (("padded", False), ("shared_prefix", True))
    ]
    assert_close(weights(runs[1][0]), weights(runs[0][0]), 1e-5)
    loss = [trainer.callback_metrics["val/loss"].item() for _, trainer in runs]
    assert loss[1] == pytest.approx(loss[0], rel=1e-5)


def test_lora_dropout_draws_the_same_again_when_a_layer_is_run_again(tiny_base: str, tmp_path: Path) -> None:
    runs = [
        fit(tiny_base, "shared_prefix", tmp_path, lora_dropout=dropout, gradient_checkpointing=again)[0]
        for dropout, again in ((0.3, False), (0.3, True), (0.0, True))
    ]
    assert_close(weights(runs[1]), weights(runs[0]), 1e-6)
    name = next(iter(weights(runs[0])))
    assert not torch.allclose(weights(runs[2])[name], weights(runs[0])[name], atol=1e-4)


def test_under_autocast_the_loss_is_that_of_padded_rows_within_half_precision(
    tiny_base: str, tmp_path: Path
) -> None:
    losses = [
        fit(tiny_base, layout, tmp_path, trainer={"precision": "bf16-mixed"})[1].callback_metrics["val/loss"]
        for layout in ("padded", "shared_prefix")
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.02)


class SaveAt(lightning.Callback):
    """Saves once, right after an optimizer step."""

    def __init__(self, step: int, path: Path) -> None:
        """Keep both."""
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Save."""
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_in_flat_rows_ends_where_the_whole_one_does(tiny_base: str, tmp_path: Path) -> None:
    half = tmp_path / "half.ckpt"
    settings = {"max_steps": 6, "callbacks": [SaveAt(2, half)]}  # within the first epoch
    whole, _ = fit(tiny_base, "shared_prefix", tmp_path, lora_dropout=0.2, trainer=settings)
    resumed, _ = fit(
        tiny_base, "shared_prefix", tmp_path, lora_dropout=0.2, trainer={"max_steps": 6}, resume=half
    )
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_compiled_layers_give_the_gradients_of_plain_ones_and_are_not_compiled_for_every_batch() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (tiny_model("mistral", num_hidden_layers=1) for _ in range(2))
    batches = [lay_flat(PAIRS[:count]) for count in (2, 3, 4, 3, 2)]
    found = []
    for model in (plain, compiled):
        scorer = take_apart(model)
        choose_layout("shared_prefix", scorer)
        if model is compiled:
            model.model.layers[0].compile(backend="eager", dynamic=True)
        losses = [score_targets(scorer, batch)[0].sum() for batch in batches]
        found.append([*losses, *torch.autograd.grad(sum(losses), list(model.parameters()))])  # type: ignore[arg-type]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert 0 < counters["stats"]["unique_graphs"] <= 6, counters["stats"]


def test_generation_goes_on_to_work_and_gives_what_it_gave(tiny_base: str, tmp_path: Path) -> None:
    module, _ = fit(tiny_base, "shared_prefix", tmp_path, trainer={"max_steps": 1})
    model = module.model.eval()
    prompts = {"input_ids": torch.tensor([[9, 8, 7, 6], [3, 4, 5, 6]]), "attention_mask": torch.ones(2, 4)}
    prompts["attention_mask"][0, :2] = 0
    found = model.generate(**prompts, max_new_tokens=8, do_sample=False, pad_token_id=0)
    before = module.model.get_base_model().config._attn_implementation
    assert before == "shared_prefix_sdpa"
    module.model.get_base_model().config._attn_implementation = "sdpa"
    wanted = model.generate(**prompts, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert found.tolist() == wanted.tolist()
    model.get_base_model().config.save_pretrained(tmp_path / "saved")
    assert "shared_prefix" not in (tmp_path / "saved" / "config.json").read_text()
