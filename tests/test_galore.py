"""GaLore: low-rank moments for matrices, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from reference import random_pairs
from tiny_models import tiny_model
from training import loader, make_trainer

from orpo_lightning import PreferenceModule
from orpo_lightning.errors import UsageError
from orpo_lightning.schedules import parameter_groups

galore = pytest.importorskip(
    "orpo_lightning.galore", reason="needs the extra: pip install 'orpo-lightning[galore]'"
)


class Norms(lightning.Callback):
    """Keeps the gradient norms that are logged."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Add that of the step before."""
        if trainer.global_step:
            self.found.append(trainer.callback_metrics["train/grad_norm"].item())


class StopAfter(lightning.Callback):
    """Ends a run early."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Stop where enough steps are done."""
        trainer.should_stop = trainer.global_step >= self.steps


def make_optimizer(groups: Any) -> torch.optim.Optimizer:
    """Return GaLore with a projection renewed every other step."""
    return galore.GaLoreAdamW(groups, lr=1e-3, rank=8, update_proj_gap=2, scale=0.25)


def make_layerwise(groups: Any) -> torch.optim.Optimizer:
    """Return the same, each weight updated in the backward pass."""
    return galore.LayerwiseGaLoreAdamW(groups, lr=1e-3, rank=8, update_proj_gap=2, scale=0.25)


def fit(
    base: str, epochs: int, resume: Path | None = None, make: Any = make_optimizer, **settings: Any
) -> tuple[PreferenceModule, lightning.Trainer]:
    """Train all weights over six pairs, two a step."""
    lightning.seed_everything(7)
    module = PreferenceModule(base, lora_r=0, optimizer=make, schedule="linear", warmup=0, **settings)
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


@pytest.mark.parametrize("make", [make_optimizer, make_layerwise])
def test_a_galore_run_resumes_to_the_same_weights(tiny_base: str, tmp_path: Path, make: Any) -> None:
    whole, _ = fit(tiny_base, 2, make=make)
    lightning.seed_everything(7)
    half = PreferenceModule(tiny_base, lora_r=0, optimizer=make, schedule="linear", warmup=0)
    stop, keep = StopAfter(3), ModelCheckpoint(tmp_path, "half", every_n_train_steps=3)
    trainer = make_trainer(max_steps=-1, max_epochs=2, callbacks=[stop, keep], enable_checkpointing=True)
    trainer.fit(half, loader(random_pairs(6, 100), 2))
    resumed, _ = fit(tiny_base, 2, resume=tmp_path / "half.ckpt", make=make)
    assert not torch.equal(half.model.model.norm.weight, whole.model.model.norm.weight)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # the head apart, and tied to the embedding
@pytest.mark.parametrize("checkpointing", [False, True])
def test_updates_in_the_backward_pass_are_those_of_a_step_after_it(
    family: str, precision: Any, checkpointing: bool, tmp_path: Path
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    trained, norms = [], []
    for make in (make_optimizer, make_layerwise):
        lightning.seed_everything(7)
        module = PreferenceModule(
            str(tmp_path), lora_r=0, optimizer=make, warmup=0.5, gradient_checkpointing=checkpointing
        )
        trainer = make_trainer(max_steps=6, precision=precision, callbacks=[norm := Norms()])
        trainer.fit(module, loader(random_pairs(12, 100), 2))
        trained.append(module.state_dict())
        norms.append(norm.found)
    before = PreferenceModule(str(tmp_path), lora_r=0)
    before.configure_model()
    for name, weight in trained[0].items():
        assert torch.allclose(trained[1][name], weight, rtol=1e-6, atol=1e-6), name
        assert not torch.allclose(before.state_dict()[name], weight, rtol=1e-6, atol=1e-6), name
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert all(norm > 0 for norm in norms[0])


def test_hardly_any_gradient_is_ever_there(tiny_base: str) -> None:
    def gradients(make: Any) -> int:
        module = PreferenceModule(tiny_base, lora_r=0)
        module.configure_model()
        optimizer = make(parameter_groups(module.model, list(module.named_parameters())))
        batch = next(iter(loader(random_pairs(2, 100), 2)))
        most = 0

        def see(*_: Any) -> None:
            nonlocal most
            most = max(most, sum(p.grad.nbytes for p in module.parameters() if p.grad is not None))

        # Called after the optimizer's own hooks, weight by weight.
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(see)
        module.objective(module(batch)).loss.backward()
        optimizer.step()
        return most

    module = PreferenceModule(tiny_base, lora_r=0)
    module.configure_model()
    assert gradients(make_optimizer) == sum(parameter.nbytes for parameter in module.parameters())
    assert gradients(make_layerwise) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches must be 1, found 2"),
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val must be null, found 1.0"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(
    tiny_base: str, settings: dict[str, Any], message: str
) -> None:
    module = PreferenceModule(tiny_base, lora_r=0, optimizer=make_layerwise)
    with pytest.raises(UsageError, match=message):
        make_trainer(**settings).fit(module, loader(random_pairs(4, 100), 2))


def test_ranks_and_a_scaled_loss_are_refused() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(4, 4))], "name": "matrices"}]
    optimizer = make_layerwise(groups)

    class Two(lightning.Trainer):
        world_size = 2

    with pytest.raises(UsageError, match="devices x num_nodes must be 1, found 2"):
        optimizer.check_trainer(Two(accelerator="cpu", logger=False))
    scaled = make_trainer()
    scaled.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(UsageError, match="cannot scale the loss"):
        optimizer.check_trainer(scaled)


def test_a_second_gradient_before_a_step_is_refused_by_the_optimizer_itself() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = make_layerwise([{"params": [weight], "name": "matrices"}])
    weight.square().sum().backward()
    assert not torch.equal(weight, torch.ones(4, 4))
    with pytest.raises(UsageError, match="a second gradient came before a step"):
        weight.square().sum().backward()
    optimizer.step()
    weight.square().sum().backward()


def test_a_later_optimizer_takes_over_the_weights_of_an_earlier_one() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    first, second = (make_layerwise([{"params": [weight], "name": "matrices"}]) for _ in range(2))
    weight.square().sum().backward()
    assert "step" not in first.state[weight]
    assert second.state[weight]["step"] == 1


def test_a_projection_holds_its_own_vectors_alone() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 96, generator=torch.Generator().manual_seed(0)))
    optimizer = make_optimizer([{"params": [weight], "name": "matrices"}])
    weight.grad = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    projection = optimizer.state[weight]["projector"].ortho_matrix
    assert projection.untyped_storage().nbytes() == 4 * 16 * 8  # not of all 16 left vectors
    left = torch.linalg.svd(weight.grad, full_matrices=False).U[:, :8]
    assert torch.equal(projection, left)


def test_galore_without_a_group_of_matrices_is_refused() -> None:
    with pytest.raises(UsageError, match="matrices"):
        galore.GaLoreAdamW([{"params": [torch.nn.Parameter(torch.zeros(4, 4))], "name": "vectors"}])
