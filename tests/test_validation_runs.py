"""Validation in real runs: the size a budget leads to, all pairs at the end, and the way from the base."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from training import make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule
from orpo_lightning.base_logps import FOLDER, BaseLogps, fingerprint
from orpo_lightning.callbacks.progress import PlainProgress
from orpo_lightning.callbacks.validation_runs import FEWEST, budgeted_size
from orpo_lightning.errors import UsageError

COUNT = 90


class Words(PreferenceDataModule):
    """A few pairs to train on, ninety to validate on."""

    def load_rows(self, split: str) -> list[dict[str, str]]:
        """Return the pairs of a split."""
        first, count = {"train": (0, 16), "validation": (100, COUNT)}.get(split, (0, 0))
        return [
            {
                "prompt": f"count {i}",
                "chosen": " up" * (i % 4 + 1) + str(i),
                "rejected": " down" * (i % 3 + 1),
            }
            for i in range(first, first + count)
        ]


def fast_adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0)


def module_on(base: str, **settings: Any) -> PreferenceModule:
    defaults: dict[str, Any] = {
        "lora_r": 4,
        "lora_dropout": 0.0,
        "gradient_checkpointing": False,
        "optimizer": fast_adamw,
        "warmup": 0,
    }
    return PreferenceModule(base, **(defaults | settings))


def data_on(base: str, folder: Path, **settings: Any) -> Words:
    defaults: dict[str, Any] = {"batch_size": 4, "max_length": 128, "validation_batch_size": 32}
    return Words(tokenizer=base, cache_dir=str(folder / "cache"), **(defaults | settings))


class Watch(lightning.Callback):
    """Notes of each validation its pairs, forward passes and values."""

    def __init__(self) -> None:
        """Start empty."""
        self.pairs: list[set[int]] = []
        self.passes: list[int] = []
        self.values: list[dict[str, float]] = []
        self.names: list[str] = []

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the calls of the backbone from here on."""
        self._seen: set[int] = set()
        self._calls = 0
        backbone = pl_module.model.get_base_model() if pl_module.hparams["lora_r"] else pl_module.model
        self._hook = backbone.model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._calls += 1

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the pairs, by the plan."""
        self._seen |= set(trainer.datamodule.validation_loader.plan.batches[batch_idx].indices)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what this validation gave."""
        self._hook.remove()
        self.pairs.append(self._seen)
        self.passes.append(self._calls)
        self.names.append(pl_module.validation_name)
        metrics = trainer.callback_metrics
        self.values.append({k: v.item() for k, v in metrics.items() if k.startswith("val")})


def fit(base: str, folder: Path, watch: Watch, **settings: Any) -> tuple[Any, PreferenceModule, Words]:
    """Train four steps with a validation after every second."""
    module_settings = {k: settings.pop(k) for k in list(settings) if k.startswith("lora_")}
    path = settings.pop("ckpt_path", None)
    steps = settings.pop("max_steps", 4)
    module, data = module_on(base, **module_settings), data_on(base, folder, **settings)
    trainer = make_trainer(
        max_steps=steps, max_epochs=-1, val_check_interval=2, num_sanity_val_steps=0, callbacks=[watch]
    )
    lightning.seed_everything(1)
    trainer.fit(module, datamodule=data, ckpt_path=path)
    return trainer, module, data


# A budget


@pytest.mark.parametrize(
    ("share", "seconds", "rate", "pairs"),
    # 5 % of 400 s are 20 s, in which 12.5 pairs a second are 250.
    [(0.05, 400.0, 12.5, 250), (0.01, 1000.0, 33.0, 330), (0.01, 10.0, 5.0, FEWEST)],
)
def test_a_budget_pays_for_so_many_pairs(share: float, seconds: float, rate: float, pairs: int) -> None:
    assert budgeted_size(share, seconds, rate) == pairs


def test_a_budget_fixes_the_size_at_the_first_validation_and_a_resumed_run_keeps_it(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    watch = Watch()
    trainer, _, data = fit(tiny_base, tmp_path, watch, validation_budget="0.0001%")
    assert [len(pairs) for pairs in watch.pairs] == [FEWEST, FEWEST]
    assert watch.pairs[0] == watch.pairs[1]
    assert len(data.validation_dataset) == FEWEST
    assert trainer.num_val_batches == [2]  # for a progress bar: counted again
    said = [record.getMessage() for record in caplog.records if "from now on" in record.getMessage()]
    assert len(said) == 1
    assert re.match(r"validation on 64 of 90 pairs from now on: 0\.0001 % of 2 steps of .* s, at .*", said[0])
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    caplog.clear()
    again = Watch()
    path = str(tmp_path / "four.ckpt")
    fit(tiny_base, tmp_path, again, validation_budget="100%", ckpt_path=path, max_steps=8)
    assert again.pairs == [watch.pairs[0]] * 2  # the same pairs, though now the budget would pay for more
    assert "from now on" not in caplog.text


def test_a_generous_budget_validates_on_no_more_pairs_than_there_are(tiny_base: str, tmp_path: Path) -> None:
    watch = Watch()
    fit(tiny_base, tmp_path, watch, validation_budget="100%")
    assert watch.pairs[0] == watch.pairs[1]
    assert FEWEST <= len(watch.pairs[0]) <= COUNT


@pytest.mark.parametrize("settings", [{"validation_budget": "5%"}, {"final_validation": "full"}])
def test_a_module_that_would_not_keep_the_promise_is_refused(
    settings: dict[str, Any], tiny_base: str, tmp_path: Path
) -> None:
    class Own(PreferenceModule):
        def configure_callbacks(self) -> list[Any]:
            return []

    with pytest.raises(UsageError, match="need the callback ValidationRuns"):
        make_trainer().fit(Own(tiny_base, lora_r=2), datamodule=data_on(tiny_base, tmp_path, **settings))


# All pairs at the end


def test_the_final_validation_is_on_all_pairs_under_a_name_of_its_own(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch()
    _, module, data = fit(tiny_base, tmp_path, watch, validation_size=20, final_validation="full")
    assert [len(pairs) for pairs in watch.pairs] == [20, 20, COUNT]
    assert watch.pairs[1] < watch.pairs[2]
    assert watch.names == ["val", "val", "val_full"]
    full, last = watch.values[2], watch.values[1]
    assert full["val/loss"] == last["val/loss"] != full["val_full/loss"]
    whole = data_on(tiny_base, tmp_path, validation_size=None)
    expected = make_trainer(callbacks=[]).validate(module, datamodule=whole, verbose=False)[0]
    for name, value in expected.items():
        other = (
            name.replace("val", "val_full", 1) if "_ci_" not in name else name.replace("val_", "val_full_")
        )
        assert full[other] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    narrower = full["val_full_ci_high/loss"] - full["val_full_ci_low/loss"]
    assert narrower < last["val_ci_high/loss"] - last["val_ci_low/loss"]
    assert len(data.validation_dataset) == 20


@pytest.mark.parametrize(("steps", "validations"), [(4, 2), (3, 2)])
def test_the_final_validation_is_not_done_twice(
    steps: int, validations: int, tiny_base: str, tmp_path: Path
) -> None:
    # All pairs each time: after four steps that was done already, after three it was not.
    watch = Watch()
    settings = {"validation_size": None, "final_validation": "full", "max_steps": steps}
    fit(tiny_base, tmp_path, watch, **settings)
    assert [len(pairs) for pairs in watch.pairs] == [COUNT] * validations


def test_progress_names_the_final_validation_and_shows_intervals(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    module = module_on(tiny_base)
    data = data_on(tiny_base, tmp_path, validation_size=20, final_validation="full")
    trainer = make_trainer(
        max_steps=2,
        val_check_interval=2,
        num_sanity_val_steps=0,
        callbacks=[PlainProgress()],
        enable_progress_bar=True,
    )
    trainer.fit(module, datamodule=data)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("validation")]
    shown = r"loss [\d.]+ \[[\d.]+, [\d.]+\]  accuracy [\d.]+ \[[\d.]+, [\d.]+\]  margin .*"
    assert re.match(rf"validation at step 2  {shown}", lines[0])
    assert re.match(rf"validation on all pairs at step 2  {shown}", lines[1])


# How far from the base


def mean_logps(module: PreferenceModule, data: Words) -> torch.Tensor:
    """Return (n, 2) of all validation pairs, from a forward pass over each alone."""
    from orpo_lightning.batching import pad_pairs

    found = []
    with torch.no_grad():
        for pair in data.validation_pairs.whole:
            logps = module(pad_pairs([pair], pad_id=0))
            found.append([logps.chosen_sum / len(pair.chosen), logps.rejected_sum / len(pair.rejected)])
    return torch.tensor(found)


@pytest.mark.parametrize("settings", [{}, {"lora_variant": "dora"}, {"lora_init": "gaussian"}], ids=str)
def test_the_change_is_that_from_the_model_before_training_pair_by_pair(
    settings: dict[str, Any], tiny_base: str, tmp_path: Path
) -> None:
    before = module_on(tiny_base, **settings)
    before.configure_model()
    watch = Watch()
    _, module, data = fit(tiny_base, tmp_path, watch, validation_size=None, **settings)
    module.eval()
    changes = mean_logps(module, data) - mean_logps(before.eval(), data)
    last = watch.values[-1]
    for i, side in enumerate(("chosen", "rejected")):
        assert last[f"val/logps_change/{side}"] == pytest.approx(changes[:, i].mean().item(), rel=1e-4)
        # Pair by pair: far narrower than the interval of the log-probability itself.
        half = 1.96 * changes[:, i].std().item() / COUNT**0.5
        width = last[f"val_ci_high/logps_change/{side}"] - last[f"val_ci_low/logps_change/{side}"]
        assert width / 2 == pytest.approx(half, rel=0.03)
    assert abs(last["val/logps_change/chosen"]) > 0.01
    assert module.training is False
    assert all(p.requires_grad for name, p in module.named_parameters() if "lora_" in name)


def test_the_base_is_computed_once_ever_and_for_more_pairs_only_as_far_as_needed(
    tiny_base: str, tmp_path: Path
) -> None:
    first = Watch()
    fit(tiny_base, tmp_path, first, validation_size=32)
    assert first.passes == [2, 1]  # one batch: policy and base, then the policy alone
    second = Watch()
    fit(tiny_base, tmp_path, second, validation_size=32, seed=42)
    assert second.passes == [1, 1]
    assert second.values == first.values
    (file,) = (tmp_path / "cache" / FOLDER).iterdir()
    assert np.isnan(np.load(file)).sum() == 2 * (COUNT - 32)
    third = Watch()
    fit(tiny_base, tmp_path, third, validation_size=64)
    assert third.passes[0] in (3, 4)  # two batches, of which one or both have a pair that is not known
    assert third.passes[1] == 2
    assert np.isnan(np.load(file)).sum() == 2 * (COUNT - 64)


@pytest.mark.parametrize("settings", [{"lora_init": "pissa"}, {"lora_r": 0}], ids=str)
def test_where_the_base_cannot_be_had_back_no_change_is_logged(
    settings: dict[str, Any], tiny_base: str, tmp_path: Path
) -> None:
    watch = Watch()
    fit(tiny_base, tmp_path, watch, max_steps=2, **settings)
    assert "val/loss" in watch.values[0]
    assert not any("logps_change" in name for name in watch.values[0])


def test_values_of_a_base_whose_config_uses_the_weights_otherwise_are_not_taken(
    tiny_base: str, tmp_path: Path
) -> None:
    files = []
    for theta in (10_000.0, 20_000.0):
        base = tmp_path / f"{theta:g}"
        shutil.copytree(tiny_base, base)
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        (base / "config.json").write_text(json.dumps(config))
        fit(str(base), tmp_path, Watch(), max_steps=2)
        files.append(len(list((tmp_path / "cache" / FOLDER).iterdir())))
    assert files == [1, 2]


def test_a_base_fingerprint_tells_weights_and_settings_apart_and_overlooks_the_adapter(
    tiny_base: str,
) -> None:
    module = module_on(tiny_base)
    module.configure_model()
    first = fingerprint(module.model, precision="32-true")
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            weight.data.add_(1.0)
    assert fingerprint(module.model, precision="32-true") == first
    assert fingerprint(module.model, precision="bf16-mixed") != first
    weight = module.model.get_base_model().model.layers[1].mlp.up_proj.weight
    weight.data[3, 5] += 1e-3
    assert fingerprint(module.model, precision="32-true") != first


def test_what_ranks_know_is_merged_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    nan = float("nan")
    file = tmp_path / "base_logps" / "x.npy"
    base = BaseLogps(file, 3)
    assert base.of([1, -1], lambda: torch.tensor([[-1.0, -2.0], [9.0, 9.0]])).tolist() == [[-1, -2], [0, 0]]
    base.merge(torch.tensor([[[nan, nan], [-1, -2], [nan, nan]], [[-5, -6], [nan, nan], [nan, nan]]]))
    base.save()

    def must_not() -> torch.Tensor:
        raise AssertionError

    again = BaseLogps(file, 3)
    assert again.of([0, 1], must_not).tolist() == [[-5, -6], [-1, -2]]
    assert np.isnan(BaseLogps(file, 4).values).all()  # of other pairs
    file.write_bytes(b"half")
    assert np.isnan(BaseLogps(file, 3).values).all()


def test_what_is_known_of_the_base_is_not_rounded_to_half_precision() -> None:
    base, values = BaseLogps(None, 1), torch.tensor([[-1.001, -2.003]])
    torch.set_default_dtype(torch.bfloat16)  # as within a forward pass in bf16-true
    try:
        found = base.of([0], lambda: values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, values)


def test_a_folder_that_cannot_be_written_costs_only_the_next_runs_time(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file stands where the folder should be")
    base = BaseLogps(tmp_path / FOLDER / "x.npy", 1)
    base.of([0], lambda: torch.ones(1, 2))
    base.save()
    assert base.values.tolist() == [[1, 1]]
