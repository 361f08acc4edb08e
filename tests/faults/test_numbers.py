"""Numbers that go wrong: steps that are left out, runs that are stopped, weights that prove themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Forks, assert_equal, curves, load, strike

Fit = Callable[..., list[Any]]
OFTEN = -1


@pytest.mark.parametrize(
    ("hook", "what", "words"),
    [
        ("on_train_batch_start", "nan loss", "step 4 is left out: the loss is not finite (rows: "),
        (
            "on_before_optimizer_step",
            "nan gradient",
            "step 4 is left out: the gradient is not finite, though",
        ),
    ],
)
def test_a_step_that_is_not_finite_changes_nothing_and_its_rows_are_named(
    hook: str, what: str, words: str, fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    ended = forks.run(fit("run", "--trainer.max_steps=4", *strike(hook, 3, what)), tmp_path)
    assert ended.code == 0, ended.err
    line = next(line for line in ended.out.splitlines() if words in line)
    rows = re.findall(r"train\.jsonl:\d+", line)
    assert len(rows) == len(set(rows)) == (2 if what == "nan loss" else 4)
    before, after = load(tmp_path / "run", "previous.ckpt"), load(tmp_path / "run")
    assert (before["global_step"], after["global_step"]) == (3, 4)
    assert_equal(before["state_dict"], after["state_dict"], "weights")
    assert_equal(before["optimizer_states"][0]["state"], after["optimizer_states"][0]["state"], "moments")
    assert curves(tmp_path / "run")["train/skipped_steps"][4] == 1


def test_training_goes_on_after_a_step_was_left_out(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    ended = forks.run(fit("run", *strike("on_train_batch_start", 3, "nan loss")), tmp_path)
    assert ended.code == 0, ended.err
    content = load(tmp_path / "run")
    assert content["global_step"] == 9
    assert all(weight.isfinite().all() for weight in content["state_dict"].values())
    moved = load(tmp_path / "run", "previous.ckpt")["state_dict"]
    assert any(not weight.equal(moved[name]) for name, weight in content["state_dict"].items())


def test_five_such_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    ended = forks.run(fit("run", *strike("on_train_batch_start", 3, "nan loss", times=OFTEN)), tmp_path)
    assert ended.code == 6
    assert len(ended.err.splitlines()) == 1
    assert "no finite gradient in 5 optimizer steps in a row (up to step 8)" in ended.err
    assert "the last good checkpoint is run/checkpoints/last.ckpt" in ended.err
    assert all(weight.isfinite().all() for weight in load(tmp_path / "run")["state_dict"].values())


def test_the_count_of_such_steps_goes_on_after_a_kill(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    spoiled = strike("on_train_batch_start", 3, "nan loss", times=OFTEN)
    assert forks.run(fit("run", *spoiled, *strike("on_train_batch_end", 6, "SIGKILL")), tmp_path).code == -9
    saved = load(tmp_path / "run")["global_step"]
    ended = forks.run(fit("run", *spoiled, "--resume=auto"), tmp_path)
    assert saved in (5, 6)
    assert ended.code == 6
    assert "(up to step 8)" in ended.err


def test_layerwise_galore_leaves_such_a_step_out_too(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    galore = ["--model.lora_r=0", "--model.optimizer=orpo_lightning.galore.LayerwiseGaLoreAdamW"]
    galore += [
        "--model.optimizer.lr=0.001",
        "--model.optimizer.rank=4",
        "--trainer.accumulate_grad_batches=1",
    ]
    spoiled = strike("on_train_batch_start", 3, "nan loss")
    ended = forks.run(fit("run", *galore, "--trainer.max_steps=4", *spoiled), tmp_path)
    assert ended.code == 0, ended.err
    assert "step 4 is left out" in ended.out
    before, after = load(tmp_path / "run", "previous.ckpt"), load(tmp_path / "run")
    assert_equal(before["state_dict"], after["state_dict"], "weights")


def test_frozen_weights_that_changed_end_the_run(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    ended = forks.run(fit("run", *strike("on_train_batch_start", 3, "frozen weight")), tmp_path)
    assert ended.code == 6
    assert "frozen weights changed during the run" in ended.err


def test_a_first_step_that_changes_nothing_ends_the_run(fit: Fit, forks: Forks, tmp_path: Path) -> None:
    struck = strike("on_before_optimizer_step", 0, "zero gradient", times=OFTEN)
    ended = forks.run(fit("run", *struck), tmp_path)
    assert ended.code == 6
    # The first step of the warm-up has no learning rate.
    assert "step 2 changed no weight at all" in ended.err


def test_another_base_model_under_the_same_name_is_refused(
    fit: Fit, forks: Forks, tiny_base: str, tmp_path: Path
) -> None:
    from shutil import copytree

    from safetensors.torch import load_file, save_file

    base = tmp_path / "base"
    copytree(tiny_base, base)
    words = [f"--model.base_model={base}"]
    assert forks.run(fit("run", *words, "--trainer.max_steps=2"), tmp_path).code == 0
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name] = weights[name] + torch.eye(*weights[name].shape) * 1e-3
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    ended = forks.run(fit("run", *words, "--resume=auto"), tmp_path)
    assert ended.code == 4
    assert "the base model's weights are not those the checkpoint was trained on" in ended.err
