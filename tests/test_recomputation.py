"""Which layers a run recomputes: as set, or as few as the memory allows, and never other numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from reference import random_pairs
from tiny_models import tiny_model, tiny_tokenizer
from training import GradientRecorder, loader, make_trainer

from orpo_lightning import PreferenceDataModule, PreferenceModule, recomputation
from orpo_lightning.callbacks import RunHeader
from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import enable_checkpointing
from orpo_lightning.planning.base import shared_prefix
from orpo_lightning.planning.checkpointing import Choice
from orpo_lightning.planning.peak import plan

ROWS = [{"prompt": f"count {k}", "chosen": f" up {k}", "rejected": f" down {k}"} for k in range(4)]


class Words(PreferenceDataModule):
    """Four pairs."""

    def load_rows(self, split: str) -> Any:
        """Return them for training only."""
        return ROWS if split == "train" else ()


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("four"), tiny_tokenizer("chatml")
    tiny_model("llama", tokenizer=tokenizer, num_hidden_layers=4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def flags(module: PreferenceModule) -> list[bool]:
    return [layer.gradient_checkpointing for layer in recomputation.recomputable(module.model)]


def fit_auto(base: str, folder: Path, **settings: Any) -> PreferenceModule:
    module = PreferenceModule(base, lora_r=2, gradient_checkpointing="auto", **settings)
    data = Words(tokenizer=base, max_length=64, cache_dir=str(folder))
    trainer = make_trainer(max_steps=1, callbacks=[RunHeader()], default_root_dir=folder)
    trainer.fit(module, datamodule=data)
    return module


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_gradients_are_the_same_with_no_some_and_all_layers_recomputed(family: str, tmp_path: Path) -> None:
    tiny_model(family, num_hidden_layers=3).save_pretrained(tmp_path)

    def gradients(recomputed: int) -> dict[str, torch.Tensor]:
        lightning.seed_everything(3)
        targets = "all-linear" if family == "gpt2" else ["q_proj", "v_proj"]
        module = PreferenceModule(
            str(tmp_path), lora_r=2, lora_dropout=0.1, lora_init="gaussian", lora_targets=targets
        )
        module.configure_model()
        recomputation.apply(module.model, Choice(recomputed, 3, True, ""))
        assert flags(module) == [number < recomputed for number in range(3)]
        recorder = GradientRecorder()
        make_trainer(max_steps=1, callbacks=[recorder]).fit(module, loader(random_pairs(4, 100), 2))
        return recorder.gradients

    none = gradients(0)
    for recomputed in (1, 2, 3):
        for name, gradient in gradients(recomputed).items():
            assert torch.equal(gradient, none[name]), (recomputed, name)


def test_layers_that_are_recomputed_run_twice_and_the_others_once(four_layers: str) -> None:
    module = PreferenceModule(four_layers, lora_r=2)
    module.configure_model()
    recomputation.apply(module.model, Choice(1, 4, True, ""))
    runs = [0] * 4
    for number, layer in enumerate(recomputation.recomputable(module.model)):

        def count(*_: Any, number: int = number) -> None:
            runs[number] += 1

        layer.self_attn.q_proj.register_forward_hook(count)
    batch = next(iter(loader(random_pairs(2, 100), 2)))
    module.forward(batch)  # with the self-check, which is not counted
    runs[:] = [0] * 4
    module.objective(module.forward(batch)).loss.backward()
    assert runs == [2, 1, 1, 1]


def test_with_offload_each_layer_starts_from_what_was_moved_out_and_the_gradients_stay(
    four_layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.Size] = []

    class MovedOut(torch.autograd.graph.saved_tensors_hooks):
        """Stands for `save_on_cpu`, whose pinned memory needs a GPU."""

        def __init__(self, pin_memory: bool, device_type: str) -> None:
            def pack(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
                moved.append(tensor.shape)
                return tensor.detach().numpy().copy()

            super().__init__(pack, torch.from_numpy)

    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", MovedOut)
    batch = next(iter(loader(random_pairs(2, 100), 2)))

    def gradients(*, offloaded: bool) -> list[torch.Tensor]:
        lightning.seed_everything(3)
        module = PreferenceModule(four_layers, lora_r=2, lora_dropout=0.0, lora_init="gaussian")
        module.configure_model()
        module.forward(batch)  # with the self-check
        recomputation.apply(module.model, Choice(4, 4, True, "", offloaded=offloaded))
        moved.clear()
        module.objective(module.forward(batch)).loss.backward()
        return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]

    kept = gradients(offloaded=False)
    assert not moved
    for one, other in zip(gradients(offloaded=True), kept, strict=True):
        assert torch.equal(one, other)
    assert moved == [(*batch.model_inputs["input_ids"].shape, 64)] * 4


def test_offload_on_a_cpu_is_refused_with_what_to_set(four_layers: str) -> None:
    module = PreferenceModule(four_layers, lora_r=2, gradient_checkpointing="offload")
    with pytest.raises(UsageError, match=r"found cpu, which has no other; set true, auto or false"):
        module.configure_model()


def test_offload_that_transformers_does_not_have_is_refused(
    tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(model, "activation_checkpointing_enable", lambda **_: None)
    enable_checkpointing(model)
    # As its signature was before transformers had it.
    monkeypatch.setattr(
        model, "activation_checkpointing_enable", lambda activation_checkpointing_kwargs=None: None
    )
    with pytest.raises(UsageError, match=r"offload is not in transformers 5\."):
        enable_checkpointing(model, offload=True)


def test_auto_does_not_choose_the_offload_that_transformers_does_not_have(
    four_layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choice = Choice(4, 4, True, "even with all layers too much", offloaded=True)
    monkeypatch.setattr(recomputation, "choose_checkpointing", lambda *_: choice)
    monkeypatch.setattr(recomputation, "knows_offload", lambda model: False)
    caplog.set_level("INFO", logger="orpo_lightning")
    assert flags(fit_auto(four_layers, tmp_path)) == [True] * 4
    assert "all layers (even with all layers too much; this transformers has no offload)" in caplog.text


def test_auto_recomputes_nothing_where_all_fits_and_says_so_once(
    four_layers: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="orpo_lightning")
    assert flags(fit_auto(four_layers, tmp_path)) == [False] * 4
    assert caplog.text.count("recomputed  ") == 1
    assert "recomputed      no layer (0.0 of" in caplog.text


def test_auto_recomputes_as_many_layers_as_the_budget_asks_for(
    four_layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit_auto(four_layers, tmp_path)
    model = recomputation.read_shape(whole)
    training = recomputation.planned_training(whole.trainer, whole, model)
    batch = shared_prefix(2, 1, 63, 63)
    peaks = [plan(model, training._replace(recomputed=n), batch).total for n in range(5)]
    assert peaks[2] < peaks[1] < peaks[0]
    monkeypatch.setattr(recomputation, "memory_for_training", lambda module: peaks[2])
    caplog.set_level("INFO", logger="orpo_lightning")
    assert flags(fit_auto(four_layers, tmp_path)) == [True, True, False, False]
    assert "the first 2 of 4 layers" in caplog.text


def test_auto_without_a_data_module_recomputes_everything_with_the_reason(tiny_base: str) -> None:
    module = PreferenceModule(tiny_base, lora_r=2, gradient_checkpointing="auto")
    make_trainer(max_steps=1).fit(module, loader(random_pairs(2, 100), 2))
    assert all(flags(module))
    assert dict(module.describe())["recomputed"] == (
        "all layers (no data module tells how large batches can be)"
    )


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_user_sets_stays(asked: bool, tiny_base: str) -> None:
    module = PreferenceModule(tiny_base, lora_r=2, gradient_checkpointing=asked)
    make_trainer(max_steps=1).fit(module, loader(random_pairs(2, 100), 2))
    assert flags(module) == [asked] * 2
    assert dict(module.describe())["recomputed"].endswith("(set by the user)")


def test_the_budget_on_a_cpu_is_what_is_free_with_the_model_less_a_margin(tiny_base: str) -> None:
    module = PreferenceModule(tiny_base, lora_r=2)
    module.configure_model()
    held = sum(parameter.nbytes for parameter in module.model.parameters())
    budget = recomputation.memory_for_training(module)
    assert budget is not None
    total = next(int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines())
    assert held < budget < 0.9 * (total + held)


@pytest.mark.parametrize(
    ("layout", "budget", "pairs", "tokens"),
    [
        ("padded", None, 2, 4096),
        ("padded", 8192, 4, 8192),  # 2 x 1024 tokens a pair
        ("shared_prefix", 8192, 4, 8192),  # 2047: four of them, and four tokens of another
        ("padded", 100, 1, 2048),
        ("padded", 10**6, 8, 8 * 2048),  # no more than the pairs of a step
    ],
)
def test_a_budget_of_tokens_decides_the_largest_batch(
    layout: str, budget: int | None, pairs: int, tokens: int
) -> None:
    data = {"batch_size": 2, "max_length": 1024, "tokens_per_batch": budget}
    found = recomputation.largest_batch(data, layout, 4)
    assert (found.pairs, found.tokens) == (pairs, tokens)
