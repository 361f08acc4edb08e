"""GaLore: low-rank moments for matrices, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from reference import random_pairs
from training import loader, make_trainer

from orpo_lightning import PreferenceModule
from orpo_lightning.errors import UsageError

galore = pytest.importorskip(
    "orpo_lightning.galore", reason="needs the extra: pip install 'orpo-lightning[galore]'"
)


def make_optimizer(groups: Any) -> torch.optim.Optimizer:
    """Return GaLore with a projection renewed every other step."""
    return galore.GaLoreAdamW(groups, lr=1e-3, rank=8, update_proj_gap=2, scale=0.25)


def fit(base: str, epochs: int, resume: Path | None = None) -> tuple[PreferenceModule, lightning.Trainer]:
    """Train all weights over six pairs, two a step."""
    lightning.seed_everything(7)
    module = PreferenceModule(base, lora_r=0, optimizer=make_optimizer, schedule="constant", warmup=0)
    trainer = make_trainer(max_steps=-1, max_epochs=epochs)
    trainer.fit(module, loader(random_pairs(6, 100), 2), ckpt_path=resume)
    return module, trainer


def test_matrices_have_low_rank_moments_and_embeddings_and_norms_full_ones(tiny_base: str) -> None:
    module, trainer = fit(tiny_base, 1)
    state = trainer.optimizers[0].state
    shapes = {name: tuple(state[p]["exp_avg"].shape) for name, p in module.model.named_parameters()}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (64, 8)
    assert shapes["model.layers.0.mlp.gate_proj.weight"] == (128, 8)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (8, 128)
    assert shapes["model.embed_tokens.weight"] == (285, 64)
    assert shapes["lm_head.weight"] == (285, 64)
    assert shapes["model.norm.weight"] == (64,)


def test_an_update_of_a_matrix_lies_in_the_projected_subspace(tiny_base: str) -> None:
    module = PreferenceModule(tiny_base, lora_r=0, optimizer=make_optimizer, schedule="constant", warmup=0)
    module.configure_model()
    name = "model.layers.0.mlp.gate_proj.weight"
    before = module.model.get_parameter(name).detach().clone()
    make_trainer(max_steps=1).fit(module, loader(random_pairs(2, 100), 2))
    update = module.model.get_parameter(name).detach() - before
    assert torch.linalg.matrix_rank(update.double(), rtol=1e-4).item() == 8


def test_a_galore_run_resumes_to_the_same_weights(tiny_base: str, tmp_path: Path) -> None:
    whole, _ = fit(tiny_base, 2)
    half, trainer = fit(tiny_base, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(tiny_base, 2, resume=tmp_path / "half.ckpt")
    assert not torch.equal(half.model.model.norm.weight, whole.model.model.norm.weight)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_galore_without_a_group_of_matrices_is_refused() -> None:
    with pytest.raises(UsageError, match="matrices"):
        galore.GaLoreAdamW([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "name": "vectors"}])
