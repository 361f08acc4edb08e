"""Runs whose weights are shared out over processes: saved whole, resumed, exported, under any strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Forks, assert_equal, assert_same_end, load, strike
from safetensors.torch import load_file

Fit = Callable[..., list[Any]]
# A step has the same eight pairs, on one process or on two.
ONE = ("--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=8", "--model.lora_dropout=0")
TWO = ("--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4", "--model.lora_dropout=0")
FSDP2 = (*TWO, "--trainer.strategy=fsdp2")
KINDS = {"nf4": ("--model.quantization=nf4",), "full": ("--model.lora_r=0",)}


@pytest.fixture(scope="module")
def whole(fit: Fit, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder with an undisturbed run of each kind, on two processes with shared-out weights."""
    folder = tmp_path_factory.mktemp("sharded")
    for kind, words in KINDS.items():
        for ended in forks.run_ranks(fit(kind, *FSDP2, *words), folder, 2):
            assert ended.code == 0, ended.err
    return {kind: folder / kind for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_run_that_ended_early_goes_on_to_the_same_bits(
    kind: str, whole: dict[str, Path], fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    words = (*FSDP2, *KINDS[kind])
    struck = strike("on_train_batch_start", 4, "SIGTERM")
    for ended in forks.run_ranks(fit("run", *words, *struck), tmp_path, 2):
        assert ended.code == 143, ended.err
    assert load(tmp_path / "run")["global_step"] == 5
    for ended in forks.run_ranks(fit("run", *words, "--resume=auto"), tmp_path, 2):
        assert ended.code == 0, ended.err
    assert_same_end(whole[kind], tmp_path / "run")


def test_a_checkpoint_of_another_optimizer_is_refused_where_weights_are_shared_out(
    whole: dict[str, Path], fit: Fit, forks: Forks
) -> None:
    """There the optimizer is made before the checkpoint is read."""
    other = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.01", "--trainer.max_steps=20")
    words = fit("full", *FSDP2, *KINDS["full"], *other, "--resume=auto")
    for ended in forks.run_ranks(words, whole["full"].parent, 2):
        assert ended.code == 4, ended.err
        assert "model.optimizer torch.optim.adamw.AdamW became torch.optim.sgd.SGD" in ended.err


def test_a_sharded_run_saves_and_exports_what_one_process_does(
    whole: dict[str, Path], fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    for kind, words in KINDS.items():
        ended = forks.run(fit(kind, *ONE, *words), tmp_path)
        assert ended.code == 0, ended.err
        name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
        alone, together = (load_file(one / "adapter" / name) for one in (tmp_path / kind, whole[kind]))
        assert alone.keys() == together.keys()
        for key, value in alone.items():
            assert torch.allclose(together[key], value, rtol=1e-3, atol=1e-4), key
        first, second = load(tmp_path / kind), load(whole[kind])
        assert first.keys() == second.keys()
        shapes = [
            {number: {k: v.shape for k, v in values.items()} for number, values in one["state"].items()}
            for one in (first["optimizer_states"][0], second["optimizer_states"][0])
        ]
        assert_equal(shapes[0], shapes[1], "shapes of the optimizer's state")


def test_a_sharded_checkpoint_is_validated_with_and_without_sharding_to_the_same_values(
    whole: dict[str, Path], fit: Fit, forks: Forks
) -> None:
    folder = whole["full"].parent
    words = fit("full", *KINDS["full"], "--resume=auto", verb="validate")
    words = [word for word in words if "save_every" not in str(word)]
    alone = forks.run(words, folder)
    assert alone.code == 0, alone.err
    first, second = forks.run_ranks([*words, "--trainer.strategy=fsdp2"], folder, 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    (expected,) = [line for line in alone.out.splitlines() if line.startswith("validation  loss")]
    assert expected in first.out.splitlines()
    assert "validation  loss" not in second.out  # one log


def test_a_sharded_run_goes_on_without_sharding_and_knows_its_base_again(
    fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    struck = strike("on_train_batch_start", 4, "SIGTERM")
    for ended in forks.run_ranks(fit("run", *FSDP2, *struck), tmp_path, 2):
        assert ended.code == 143, ended.err
    for ended in forks.run_ranks(fit("run", *TWO, "--resume=auto"), tmp_path, 2):
        assert ended.code == 0, ended.err
    assert forks.run(fit("alone", *ONE), tmp_path).code == 0
    first, second = load(tmp_path / "alone"), load(tmp_path / "run")
    for name, weight in first["state_dict"].items():
        assert torch.allclose(second["state_dict"][name], weight, rtol=1e-3, atol=1e-4), name


def test_a_checkpoint_of_another_rank_is_refused_before_anything_of_it_is_loaded(
    whole: dict[str, Path], fit: Fit, forks: Forks, tmp_path: Path
) -> None:
    resume = f"--resume={whole['nf4'] / 'checkpoints' / 'last.ckpt'}"
    words = fit("run", *FSDP2, *KINDS["nf4"], "--model.lora_r=8", "--trainer.max_steps=12", resume)
    for ended in forks.run_ranks(words, tmp_path, 2):
        assert ended.code == 4, ended.err
        assert "model.lora_r 4 became 8" in ended.err
