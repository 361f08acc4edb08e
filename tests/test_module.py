"""The module in real training runs: what is trained, counted, logged, saved and resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from reference import orpo_by_hand, pair_sums, random_pairs
from training import GradientRecorder, loader, make_trainer

from orpo_lightning import ORPO, PreferenceModule
from orpo_lightning.batching import TokenizedPair, pad_pairs
from orpo_lightning.batching.padded import pair_lengths
from orpo_lightning.batching.sampler import Loader, PlannedSampler
from orpo_lightning.errors import CheckpointError, UsageError
from orpo_lightning.module import run_seed

TARGETS = ["q_proj", "down_proj"]


def module_on(base: str, **settings: Any) -> PreferenceModule:
    """Return a small LoRA module without dropout."""
    defaults: dict[str, Any] = {"lora_r": 4, "lora_dropout": 0.0, "lora_targets": TARGETS}
    return PreferenceModule(base, **(defaults | settings))


def fast_adamw(groups: Any) -> torch.optim.Optimizer:
    """Return an optimizer that moves weights visibly in a few steps."""
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)


def trained(module: PreferenceModule) -> dict[str, torch.Tensor]:
    """Return a copy of what is trained."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare bit for bit."""
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_bare_trainer_and_anyones_loader_train_the_adapter_and_nothing_else(tiny_base: str) -> None:
    lightning.seed_everything(1)
    module = module_on(tiny_base, optimizer=fast_adamw, warmup=0)
    pairs = random_pairs(8, 100)
    module.configure_model()
    before = {name: value.clone() for name, value in module.named_parameters()}
    make_trainer(max_steps=4).fit(module, loader(pairs, 2))
    for name, value in module.named_parameters():
        changed = not torch.equal(value, before[name])
        assert changed == ("lora_" in name), name


def test_the_logged_loss_is_the_papers_loss_written_out(tiny_base: str) -> None:
    module = module_on(tiny_base, objective=ORPO(beta=0.3))
    pairs = random_pairs(6, 100)
    trainer = make_trainer()
    results = trainer.validate(module, loader(pairs, 4), verbose=False)
    assert results[0]["val/loss"] == pytest.approx(orpo_by_hand(module.model, pairs, 0.3).item(), rel=1e-5)


def test_without_the_odds_ratio_the_loss_is_the_models_own_on_the_chosen_sequence(tiny_base: str) -> None:
    module = module_on(tiny_base, objective=ORPO(beta=0.0))
    pair = random_pairs(1, 100)[0]
    found = make_trainer().validate(module, loader([pair], 1), verbose=False)[0]
    ids = torch.tensor([pair.prompt + pair.chosen])
    assert found["val/loss"] == pytest.approx(module.model(input_ids=ids, labels=ids).loss.item(), rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_validation_metrics_equal_a_float64_reference_whatever_the_batch_size(
    tiny_base: str, batch_size: int
) -> None:
    module = module_on(tiny_base)
    pairs = random_pairs(8, 100, seed=5)
    found = make_trainer().validate(module, loader(pairs, batch_size), verbose=False)[0]
    sums = [{k: v.double().item() for k, v in pair_sums(module.model, pair).items()} for pair in pairs]
    chosen = [s["chosen_sum"] / len(p.chosen) for s, p in zip(sums, pairs, strict=True)]
    rejected = [s["rejected_sum"] / len(p.rejected) for s, p in zip(sums, pairs, strict=True)]
    tokens = sum(len(p.chosen) + len(p.prompt) - 1 for p in pairs)
    nll = -sum(s["chosen_sum"] + s["prompt_sum"] for s in sums) / tokens
    assert found["val/nll_loss"] == pytest.approx(nll, rel=1e-6)
    assert found["val/logps/chosen"] == pytest.approx(sum(chosen) / 8, rel=1e-6)
    assert found["val/logps/rejected"] == pytest.approx(sum(rejected) / 8, rel=1e-6)
    wins = sum(c > r for c, r in zip(chosen, rejected, strict=True))
    assert found["val/rewards/accuracies"] == pytest.approx(wins / 8)
    assert found["val/loss"] == pytest.approx(
        found["val/nll_loss"] + 0.1 * found["val/odds_ratio_loss"], rel=1e-6
    )


@pytest.mark.parametrize(("batch_size", "accumulate"), [(3, 4), (1, 12)])
def test_twelve_pairs_give_the_same_gradient_however_they_are_split(
    tiny_base: str, batch_size: int, accumulate: int
) -> None:
    pairs = random_pairs(12, 100, seed=2)

    def step_gradients(size: int, count: int) -> dict[str, torch.Tensor]:
        lightning.seed_everything(3)
        recorder = GradientRecorder()
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=count, callbacks=[recorder])
        trainer.fit(module_on(tiny_base, lora_init="gaussian"), loader(pairs, size, step=12))
        return recorder.gradients

    whole, split = step_gradients(12, 1), step_gradients(batch_size, accumulate)
    assert whole.keys() == split.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in whole.values())
    for name, gradient in whole.items():
        assert torch.allclose(split[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item()), name


@pytest.mark.parametrize("tokens", [36, 100, 400])
def test_a_budget_of_tokens_gives_the_same_gradient_and_runs_the_model_only_where_there_are_pairs(
    tiny_base: str, tokens: int
) -> None:
    pairs = random_pairs(12, 100, seed=2)  # rows of up to 18 tokens: 36 hold any pair

    def step(batches: Any, count: int) -> tuple[dict[str, torch.Tensor], int]:
        lightning.seed_everything(3)
        recorder = GradientRecorder()
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=count, callbacks=[recorder])
        module = module_on(tiny_base, lora_init="gaussian", gradient_checkpointing=False)
        calls = []
        module.configure_model()
        module.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
        trainer.fit(module, batches)
        return recorder.gradients, len(calls)

    whole, _ = step(loader(pairs, 12, step=12), 1)
    lengths = pair_lengths(pairs)
    plan = PlannedSampler(lengths, batch_size=1, accumulate=12, tokens_per_batch=tokens)
    used = sum(bool(batch.indices) for batch in plan)
    split, calls = step(Loader(pairs, plan, partial(pad_pairs, pad_id=0)), 12)
    assert calls == used + 2  # two prove that backbone and head are the model
    assert 1 <= used < 12
    for name, gradient in whole.items():
        assert torch.allclose(split[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item()), name


def test_a_short_last_window_of_accumulation_has_the_gradient_of_its_own_pairs(tiny_base: str) -> None:
    pairs = random_pairs(4, 100, seed=6)

    def step_gradients(size: int, count: int) -> dict[str, torch.Tensor]:
        lightning.seed_everything(3)
        recorder = GradientRecorder()
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=count, callbacks=[recorder])
        trainer.fit(module_on(tiny_base, lora_init="gaussian"), loader(pairs, size, step=4))
        return recorder.gradients

    whole, short = step_gradients(4, 1), step_gradients(2, 3)  # two micro-batches where three are a window
    for name, gradient in whole.items():
        assert torch.allclose(short[name], gradient, rtol=1e-6, atol=1e-6 * gradient.abs().max().item()), name


def test_gradient_checkpointing_runs_every_layer_twice_in_training_and_once_in_validation(
    tiny_base: str,
) -> None:
    def calls(checkpointing: bool) -> tuple[int, int]:
        module = module_on(tiny_base, gradient_checkpointing=checkpointing)
        module.configure_model()
        counted = {"train": 0, "val": 0}
        layer = module.model.get_base_model().model.layers[0].self_attn.q_proj

        def count(*_: Any) -> None:
            counted["train" if torch.is_grad_enabled() else "val"] += 1

        layer.register_forward_hook(count)
        batches = loader(random_pairs(2, 100), 2)
        module.forward(next(iter(batches)))  # the self-check and this forward are not counted
        counted.update(train=0, val=0)
        trainer = make_trainer(max_steps=1, num_sanity_val_steps=0)
        trainer.fit(module, batches, batches)
        return counted["train"], counted["val"]

    assert calls(checkpointing=False) == (1, 1)
    assert calls(checkpointing=True) == (2, 1)


def test_checkpoints_hold_the_trained_part_only_and_resume_to_the_same_numbers(
    tiny_base: str, tmp_path: Path
) -> None:
    pairs = random_pairs(6, 100)

    def fit(epochs: int, resume: Path | None = None) -> tuple[PreferenceModule, lightning.Trainer]:
        lightning.seed_everything(7)
        module = module_on(tiny_base, lora_dropout=0.1, optimizer=fast_adamw, schedule="constant", warmup=0)
        trainer = make_trainer(max_steps=-1, max_epochs=epochs)
        trainer.fit(module, loader(pairs, 2), ckpt_path=resume)
        return module, trainer

    whole, _ = fit(2)
    half, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all("lora_" in name for name in saved)
    resumed, _ = fit(2, resume=tmp_path / "half.ckpt")
    assert not torch.equal(next(iter(trained(half).values())), next(iter(trained(whole).values())))
    assert_equal(trained(resumed), trained(whole))


def test_a_checkpoint_of_another_rank_is_refused_by_that_name(tiny_base: str, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit(module_on(tiny_base), loader(random_pairs(2, 100), 2))
    trainer.save_checkpoint(tmp_path / "r4.ckpt")
    with pytest.raises(CheckpointError, match=r"model\.lora_r 4 became 8"):
        make_trainer().fit(
            module_on(tiny_base, lora_r=8),
            loader(random_pairs(2, 100), 2),
            ckpt_path=str(tmp_path / "r4.ckpt"),
        )


def test_a_checkpoint_that_lacks_a_layer_is_refused(tiny_base: str, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1)
    trainer.fit(module_on(tiny_base), loader(random_pairs(2, 100), 2))
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    checkpoint["state_dict"].pop(next(iter(checkpoint["state_dict"])))
    torch.save(checkpoint, tmp_path / "part.ckpt")
    with pytest.raises(CheckpointError, match="None there"):
        make_trainer().fit(
            module_on(tiny_base), loader(random_pairs(2, 100), 2), ckpt_path=str(tmp_path / "part.ckpt")
        )


def test_the_module_comes_back_from_a_checkpoint_by_load_from_checkpoint(
    tiny_base: str, tmp_path: Path
) -> None:
    module = module_on(tiny_base, objective=ORPO(beta=0.7), optimizer=fast_adamw, warmup=0)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, loader(random_pairs(4, 100), 2))
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    again = PreferenceModule.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert again.objective == ORPO(beta=0.7)
    assert_equal(trained(again), trained(module))


def test_every_name_of_the_table_is_logged_in_training_and_validation(tiny_base: str) -> None:
    batches = loader(random_pairs(4, 100), 2)
    trainer = make_trainer()
    trainer.fit(module_on(tiny_base), batches, batches)
    names = {"loss", "nll_loss", "odds_ratio_loss", "log_odds_ratio", "logps/chosen", "logps/rejected"}
    names |= {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    for stage in ("train", "val"):
        assert {f"{stage}/{name}" for name in names} <= trainer.callback_metrics.keys()
    extras = {"train/grad_norm", "train/lr", "train/pairs_per_second", "train/tokens_per_second"}
    assert extras <= trainer.callback_metrics.keys()


def test_training_and_validation_values_stand_at_the_optimizer_steps_done(
    tiny_base: str, tmp_path: Path
) -> None:
    import csv

    from lightning.pytorch.loggers import CSVLogger

    batches = loader(random_pairs(8, 100), 1)
    settings = {"max_steps": 4, "accumulate_grad_batches": 2, "val_check_interval": 4, "log_every_n_steps": 2}
    trainer = make_trainer(logger=CSVLogger(tmp_path), **settings)
    trainer.fit(module_on(tiny_base), batches, batches)
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as lines:  # type: ignore[union-attr,arg-type]
        rows = list(csv.DictReader(lines))
    for name in ("train/loss", "val/loss"):
        assert [row["step"] for row in rows if row[name]] == ["2", "4"], name


def test_a_training_metric_is_the_mean_over_the_pairs_of_all_micro_batches_since_the_last_log(
    tiny_base: str,
) -> None:
    pairs = random_pairs(6, 100, seed=9)
    module = module_on(tiny_base, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=2)
    trainer.fit(module, loader([*pairs[:5], pairs[5]], 4, step=6))  # micro-batches of 4 and 2 pairs
    expected = sum((pair_sums(module.model, p)["chosen_sum"] / len(p.chosen)).item() for p in pairs) / 6
    assert trainer.callback_metrics["train/logps/chosen"].item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_norm_is_that_before_clipping(tiny_base: str) -> None:
    recorder = GradientRecorder()
    trainer = make_trainer(max_steps=1, gradient_clip_val=1e-4, callbacks=[recorder])
    trainer.fit(module_on(tiny_base), loader(random_pairs(2, 100), 2))
    norm = torch.stack([gradient.norm() for gradient in recorder.gradients.values()]).norm()
    assert norm > 1e-3
    assert trainer.callback_metrics["train/grad_norm"].item() == pytest.approx(norm.item(), rel=1e-5)


def test_lora_starts_from_the_runs_seed_alone(tiny_base: str) -> None:
    def start(drawn: int) -> dict[str, torch.Tensor]:
        lightning.seed_everything(11)
        torch.rand(drawn)
        module = module_on(tiny_base)
        module.configure_model()
        return trained(module)

    assert run_seed() is None
    assert_equal(start(0), start(17))


def test_full_fine_tuning_keeps_fp32_weights_under_mixed_precision(tiny_base: str) -> None:
    module = PreferenceModule(tiny_base, lora_r=0, optimizer=fast_adamw, warmup=0)
    trainer = make_trainer(precision="bf16-mixed")
    trainer.fit(module, loader(random_pairs(4, 100), 2))
    assert {p.dtype for p in module.model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in module.model.parameters())


def test_lora_under_mixed_precision_keeps_a_half_base_and_fp32_adapters(tiny_base: str) -> None:
    module = module_on(tiny_base)
    trainer = make_trainer(precision="bf16-mixed")
    trainer.fit(module, loader(random_pairs(4, 100), 2))
    kinds = {(p.requires_grad, p.dtype) for p in module.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_an_empty_answer_among_good_pairs_leaves_every_weight_finite(tiny_base: str) -> None:
    pairs = [*random_pairs(3, 100), TokenizedPair([5, 6], [], [7])]
    module = module_on(tiny_base, optimizer=fast_adamw, warmup=0)
    trainer = make_trainer()
    trainer.fit(module, loader(pairs, 4))
    assert all(torch.isfinite(value).all() for value in trained(module).values())
    assert trainer.callback_metrics["train/pairs/skipped"].item() == 0.25


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"lora_r": -1}, "lora_r"),
        ({"lora_dropout": 1.5}, "lora_dropout"),
        ({"lora_r": 0, "quantization": "nf4"}, "quantization"),
        ({"lora_init": "loftq"}, "nf4"),
        ({"lora_init": "pissa", "quantization": "nf4"}, "none"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(
    settings: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        PreferenceModule("no/such-model", **settings)


def test_weights_in_half_precision_under_a_scaler_are_refused_with_what_to_set(tiny_base: str) -> None:
    module = module_on(tiny_base, lora_r=0, dtype="float16")
    # By name Lightning would take bf16 on a CPU.
    mixed = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer = make_trainer(plugins=[mixed])
    with pytest.raises(UsageError, match=r"model.dtype float16: a scaler .* set model.dtype float32"):
        trainer.fit(module, loader(random_pairs(4, 100), 2))
