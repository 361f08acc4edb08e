"""Memory runs out in a step of a real run: what the terminal says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from orpo_lightning import ObjectiveOutput, PreferenceModule
from orpo_lightning.batching import PairBatch, TokenizedPair, pad_pairs
from orpo_lightning.callbacks.memory_report import sizes
from orpo_lightning.cli import main
from orpo_lightning.planning.base import padded


class Hungry(PreferenceModule):
    """Somebody's module, whose second step asks for more than there is."""

    def step(self, batch: PairBatch) -> ObjectiveOutput:
        """Do as GPUs do."""
        if self.trainer.global_step == 1 and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return super().step(batch)


@pytest.fixture
def fit(tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"say {n}", "chosen": f"the {n} " * 40, "rejected": f"a {n} " * 40} for n in range(10, 34)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words: dict[str, Any] = {
        "model.base_model": tiny_base,
        "model.gradient_checkpointing": "false",
        "data.train": "pairs.jsonl",
        "data.validation": 0.2,
        "data.batch_size": 4,
        "data.cache_dir": "cache",
        "trainer.max_steps": 3,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.num_sanity_val_steps": 0,
    }
    return ["fit", *(f"--{name}={value}" for name, value in words.items())]


def test_it_is_exit_code_five_with_the_batch_the_plan_and_three_changes(
    fit: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit, Hungry) == 5
    err = capsys.readouterr().err
    told = err[err.index("error: ") :].splitlines()
    tokens = re.fullmatch(
        r"error: out of memory in a training step: 4 pairs, ([\d,]+) tokens, on CPU \([\d.]+ GiB\)", told[0]
    )
    assert tokens, told
    assert int(tokens[1].replace(",", "")) > 4 * 2 * 40
    assert told[1].startswith("planned: ")
    assert told[2] == "any of these would fit:"
    assert [line.split()[0] for line in told[3:]] == [
        "--model.gradient_checkpointing",
        "--data.batch_size",
        "--data.max_length",
    ]
    assert "--data.batch_size 2 --trainer.accumulate_grad_batches 2" in told[4]
    assert "Traceback" not in err
    assert "out of memory in a training step" in Path("runs/default/log").read_text()


def test_under_a_budget_of_tokens_a_smaller_budget_is_advised_and_no_other_step(
    fit: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.batch_size=1", "--data.tokens_per_batch=4000", "--trainer.accumulate_grad_batches=4"]
    assert main([*fit, *words], Hungry) == 5
    err = capsys.readouterr().err
    told = err[err.index("error: ") :].splitlines()
    advice = [line.split() for line in told[3:]]
    tokens = next(int(flags[1]) for flags in advice if flags[0] == "--data.tokens_per_batch")
    assert 2 * 2 * 40 < tokens < 4000
    assert "batch_size" not in err
    assert "accumulate_grad_batches" not in err


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_in_a_validation_it_names_the_size_of_its_batches(
    fit: list[str], verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: PreferenceModule, batch: PairBatch) -> ObjectiveOutput:
        if not self.training:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return PreferenceModule.step(self, batch)

    monkeypatch.setattr(Hungry, "step", step)
    words = [verb, *fit[1:], "--data.validation_batch_size=3", "--data.test=pairs.jsonl"]
    words.append("--trainer.val_check_interval=1")
    assert main(words, Hungry) == 5
    told = capsys.readouterr().err.splitlines()[-1]
    what = "test" if verb == "test" else "validation"
    assert re.fullmatch(
        rf"error: out of memory in a step of the {what}: 3 pairs, [\d,]+ tokens, on CPU \([\d.]+ GiB\): set "
        r"data\.validation_batch_size below 3, or lower data\.max_length",
        told,
    ), told


def test_outside_a_step_it_is_one_line_of_advice(
    fit: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: PreferenceModule) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Hungry, "configure_model", broken)
    assert main(fit, Hungry) == 5
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: out of memory: lower data.batch_size")
    assert "in a validation data.validation_batch_size" in told


def test_a_batchs_sizes_are_those_of_the_plan() -> None:
    pairs = [TokenizedPair([1] * 5, [2] * 7, [3] * 4)] * 3
    assert sizes(pad_pairs(pairs, pad_id=0)) == padded(3, 5, 7, 4)
