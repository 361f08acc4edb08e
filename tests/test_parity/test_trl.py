"""The same numbers as TRL 1.16's ORPOTrainer: loss, metrics, every gradient, and a training run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader

from orpo_lightning import ORPO, PreferenceModule
from orpo_lightning.batching import pad_pairs
from orpo_lightning.modeling import disable_dropout

trl_oracle = pytest.importorskip("trl_oracle", reason="TRL is the oracle: pip install 'orpo-lightning[dev]'")

FAMILIES = ["llama", "mistral", "qwen2", "gpt2", "phi", "gemma2", "mixtral"]
NAMES = {  # ours → TRL's, and the sign between them
    "nll_loss": ("nll_loss", 1),
    "odds_ratio_loss": ("log_odds_ratio", -1),
    "log_odds_ratio": ("log_odds_chosen", 1),
    **{
        name: (name, 1)
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
    },
    **{name: (name, 1) for name in ("logps/chosen", "logps/rejected")},
}


def module_of(model: Any, **settings: Any) -> PreferenceModule:
    """Return our module around a model that exists already."""
    module = PreferenceModule("given", lora_r=0, gradient_checkpointing=False, **settings)
    module.model = model
    return module.train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return every parameter's gradient by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_metrics_and_every_gradient_equal_trls(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    model = tiny_model(family, tokenizer=tokenizer)
    disable_dropout(model)
    trainer = trl_oracle.make_trainer(copy.deepcopy(model), tokenizer, trl_oracle.text_rows(4), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()

    module = module_of(model, objective=ORPO(beta=0.1))
    output = module.step(pad_pairs(trl_oracle.pairs_of(trainer), pad_id=tokenizer.pad_token_id))
    output.loss.backward()

    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    means = {name: (term.sum / term.count).item() for name, term in (output.terms | output.metrics).items()}
    for ours, (theirs, sign) in NAMES.items():
        assert means[ours] == pytest.approx(sign * metrics[theirs], rel=1e-5, abs=1e-7), ours
    reference = gradients(trainer.model)
    found = gradients(model)
    assert found.keys() == reference.keys()
    for name, gradient in reference.items():
        scale = gradient.abs().max().item()
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-5 * scale), name


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_adamw_steps_follow_trls_trainer(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    model = tiny_model(family, tokenizer=tokenizer)
    disable_dropout(model)
    settings = {
        "per_device_train_batch_size": 3,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
    }
    rows = trl_oracle.text_rows(60)
    trainer = trl_oracle.make_trainer(copy.deepcopy(model), tokenizer, rows, tmp_path, **settings)
    pairs = trl_oracle.pairs_of(trainer)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]

    batches = [
        pad_pairs(pairs[start : start + 3], pad_id=tokenizer.pad_token_id) for start in range(0, 60, 3)
    ]
    module = module_of(
        model,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0),
        schedule="linear",
        warmup=2,
    )
    recorder = LossRecorder()
    ours = lightning.Trainer(
        max_steps=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        callbacks=[recorder],
    )
    ours.fit(module, DataLoader(batches, batch_size=None))

    assert len(losses) == len(recorder.losses) == 20
    # TRL rounds what it logs to four digits; the weights below are compared exactly.
    assert recorder.losses == pytest.approx(losses, abs=2e-3)
    assert losses[-1] < losses[0]
    for (name, one), other in zip(model.named_parameters(), trainer.model.parameters(), strict=True):
        if name.endswith(("k_proj.bias", "c_attn.bias")):
            continue  # cancels in the softmax: its gradient is noise, which Adam blows up
        moved = (other - dict(tiny_model(family, tokenizer=tokenizer).named_parameters())[name]).abs().max()
        assert (one - other).abs().max() <= 1e-5 * max(1.0, moved.item()) + 2e-5, name


class LossRecorder(lightning.Callback):
    """Keeps the loss logged at every step."""

    def __init__(self) -> None:
        """Start empty."""
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        """Read the module's own running mean before it is reset."""
        self.losses.append(module.train_means.compute()["loss"].item())
