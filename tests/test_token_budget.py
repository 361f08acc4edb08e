"""`data.tokens_per_batch auto`: the most that fits, the same steps, the same budget when a run goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training import GradientRecorder, make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule, token_budget
from orpo_lightning.callbacks import RunHeader
from orpo_lightning.cli import main
from orpo_lightning.planning.base import Training, fullest
from orpo_lightning.planning.peak import plan
from orpo_lightning.planning.settings import training_of
from orpo_lightning.planning.shapes import read_model
from orpo_lightning.planning.token_budget import largest_budget

ROWS = [
    {"prompt": f"count to {k}", "chosen": " and up" * (1 + 2 * k % 9), "rejected": f" down {k}"}
    for k in range(16)
]


class Words(PreferenceDataModule):
    """Sixteen pairs of different lengths."""

    def load_rows(self, split: str) -> Any:
        """Return them for training only."""
        return ROWS if split == "train" else ()


@pytest.fixture(scope="module")
def mistral() -> Any:
    from transformers import AutoConfig

    from orpo_lightning.planning.known import SHAPES

    config = AutoConfig.for_model(**SHAPES["mistralai/Mistral-7B-v0.1"])
    return read_model(config, ["q_proj", "v_proj", "up_proj"])


TRAINING: Training = training_of(precision="bf16-mixed", quantization="nf4", layers=32)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("gib", [8, 16, 24])
def test_the_budget_fits_and_one_a_little_larger_does_not(layout: str, gib: int, mistral: Any) -> None:
    memory = gib * 2**30
    found, planned = largest_budget(mistral, TRAINING, layout, longest=1024, most=64, memory=memory)
    more = plan(mistral, TRAINING, fullest(layout, 1, 1024, budget=found + 65, most=64)).total
    assert planned <= memory < more
    assert planned > 0.97 * memory


def test_no_budget_is_larger_than_a_step_and_none_smaller_than_the_longest_pair(mistral: Any) -> None:
    settings: dict[str, Any] = {"longest": 1024, "most": 4}
    found, planned = largest_budget(mistral, TRAINING, "padded", memory=10**12, **settings)
    assert found == 4 * 2 * 1024
    found, planned = largest_budget(mistral, TRAINING, "padded", memory=10**9, **settings)
    assert found == 2 * 1024
    assert planned > 10**9


def fit(base: str, folder: Path, tokens: Any, **settings: Any) -> tuple[Words, dict[str, torch.Tensor]]:
    module = PreferenceModule(base, lora_r=2, lora_dropout=0.0, lora_init="gaussian", **settings)
    data = Words(tokenizer=base, max_length=128, cache_dir=str(folder), batch_size=1, tokens_per_batch=tokens)
    recorder = GradientRecorder()
    trainer = make_trainer(
        max_steps=1, accumulate_grad_batches=16, callbacks=[recorder, RunHeader()], default_root_dir=folder
    )
    trainer.fit(module, datamodule=data)
    return data, recorder.gradients


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the plan decide as on a GPU of so many bytes."""

    def put(memory: int) -> None:
        monkeypatch.setattr(token_budget, "_why_not_planned", lambda module: "")
        monkeypatch.setattr(token_budget, "memory_for_training", lambda module: memory)

    return put


def test_on_a_cpu_it_is_what_batch_size_of_the_longest_pairs_take_with_the_reason(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data, _ = fit(tiny_base, tmp_path, "auto")
    assert data.train_dataset is not None
    longest = max(pair.sum() for pair in data.train_dataset.lengths)
    assert data.tokens_per_batch == int(longest)
    assert (
        f"{data.tokens_per_batch:,} (auto: what batch_size 1 of the longest pairs take: a CPU" in caplog.text
    )


def test_more_memory_gives_larger_micro_batches_of_the_same_steps(
    tiny_base: str, tmp_path: Path, as_on_a_gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    _, wanted = fit(tiny_base, tmp_path, None)
    sizes = []
    for memory in (10**6, 4 * 10**6, 10**10):
        as_on_a_gpu(memory)
        torch.manual_seed(0)
        data, gradients = fit(tiny_base, tmp_path, "auto")
        sizes.append(data.tokens_per_batch)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, wanted[name], atol=1e-6), name
    assert sizes == sorted(set(sizes)), sizes
    assert "auto: one pair of the longest, though" in caplog.text
    assert "auto: a whole step" in caplog.text


def test_where_nothing_need_be_recomputed_memory_is_not_spent_on_recomputing(
    tiny_base: str, tmp_path: Path, as_on_a_gpu: Any
) -> None:
    as_on_a_gpu(4 * 10**6)
    sizes = {}
    for checkpointing in (False, "auto", True):
        data, _ = fit(tiny_base, tmp_path, "auto", gradient_checkpointing=checkpointing)
        sizes[checkpointing] = data.tokens_per_batch
    assert sizes["auto"] == sizes[False] < sizes[True]


def test_the_saved_configuration_has_the_number_and_a_run_that_goes_on_keeps_it(
    tiny_base: str,
    tmp_path: Path,
    as_on_a_gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["fit", f"--model.base_model={tiny_base}", "--model.lora_r=2", "--data.train=pairs.jsonl"]
    words += ["--data.tokens_per_batch=auto", "--data.batch_size=1", "--trainer.accumulate_grad_batches=4"]
    words += ["--run_dir=run", "--trainer.accelerator=cpu", "--data.cache_dir=cache", "--resume=auto"]
    found = []
    for steps, memory in ((1, 10**10), (2, 10**6)):
        as_on_a_gpu(memory)
        assert main([*words, f"--trainer.max_steps={steps}"]) == 0
        config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        found.append(config["data"]["tokens_per_batch"])
    assert isinstance(found[0], int)
    assert found[0] == found[1]
    assert f"{found[0]:,} (auto, as before the checkpoint)" in capsys.readouterr().out


def test_any_other_word_is_refused(tiny_base: str) -> None:
    assert main(["fit", f"--model.base_model={tiny_base}", "--data.tokens_per_batch=most"]) == 2
