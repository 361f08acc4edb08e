"""The lean LoRA layers give what PEFT's give, and go PEFT's own way where more is asked of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_model
from torch import Tensor

from orpo_lightning.lean_lora import make_lean
from orpo_lightning.modeling import load_base

IDS = torch.arange(2, 22).reshape(2, 10)


def adapted(base: Any, **settings: Any) -> PeftModel:
    """Return a model with PEFT's own LoRA layers, whose B is not zero."""
    torch.manual_seed(3)
    config = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": "all-linear"} | settings
    model = get_peft_model(base, LoraConfig(**config, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model.train()


def logits_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    logits = model(input_ids=IDS).logits
    logits.float().log_softmax(-1).square().mean().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_peft(model: Any, tolerance: float, layers: int | None = None) -> None:
    """Compare logits and each gradient, as a distance relative to its own length."""
    logits, gradients = logits_and_gradients(model)
    lean = copy.deepcopy(model)
    count = make_lean(lean)
    assert count > 0 if layers is None else count == layers
    found_logits, found = logits_and_gradients(lean)
    assert {n: g.dtype for n, g in found.items()} == {n: g.dtype for n, g in gradients.items()}
    gaps = {name: distance(found[name], gradient) for name, gradient in gradients.items()}
    assert distance(found_logits, logits) <= tolerance
    worst = max(gaps, key=gaps.__getitem__)
    assert gaps[worst] <= tolerance, worst


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])  # with and without biases
def test_outputs_and_gradients_are_pefts(family: str, settings: dict[str, Any]) -> None:
    assert_equal_to_peft(adapted(tiny_model(family), **settings).double(), 1e-11, layers=14)


def test_under_autocast_they_are_no_further_from_the_exact_numbers_than_pefts() -> None:
    model = adapted(tiny_model("llama"))
    exact = logits_and_gradients(copy.deepcopy(model).double())[1]
    lean = copy.deepcopy(model)
    make_lean(lean)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [
            sum(distance(found[name], exact[name]) for name in exact)
            for found in (logits_and_gradients(one)[1] for one in (lean, model))
        ]
    assert errors[0] <= 1.1 * errors[1]
    assert errors[0] <= 0.05 * len(exact)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_layers_of_a_quantised_base_are_lean_too(
    kind: Any, autocast: bool, dropout: float, tmp_path: Path
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    dtype = torch.bfloat16 if autocast else torch.float32
    base = load_base(str(tmp_path), quantization=kind, dtype=dtype)
    model = adapted(base, lora_dropout=dropout)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_equal_to_peft(model, 0.12 if autocast else 1e-4, layers=14)


def test_a_base_that_is_trained_as_well_gets_its_gradient() -> None:
    model = adapted(tiny_model("llama"))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert_equal_to_peft(model.double(), 1e-11)


def test_dora_and_biases_of_lora_stay_pefts() -> None:
    assert make_lean(adapted(tiny_model("llama"), use_dora=True)) == 0
    assert make_lean(adapted(tiny_model("llama"), lora_bias=True)) == 0


def lean_and_plain() -> tuple[PeftModel, PeftModel]:
    plain = adapted(tiny_model("llama")).eval()
    lean = copy.deepcopy(plain)
    make_lean(lean)
    return lean, plain


def test_switched_off_the_adapter_leaves_the_base() -> None:
    lean, plain = lean_and_plain()
    with torch.no_grad(), lean.disable_adapter(), plain.disable_adapter():
        without = lean(input_ids=IDS).logits
        assert torch.equal(without, plain(input_ids=IDS).logits)
    with torch.no_grad():
        assert (lean(input_ids=IDS).logits - without).abs().max() > 1e-3


def test_merged_and_with_two_adapters_it_goes_pefts_way() -> None:
    lean, plain = lean_and_plain()
    for model in (lean, plain):
        torch.manual_seed(9)
        model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        both = plain(input_ids=IDS).logits
        assert torch.equal(lean(input_ids=IDS).logits, both)
        lean.merge_adapter()
        torch.testing.assert_close(lean(input_ids=IDS).logits, both, rtol=1e-4, atol=1e-5)


def test_what_is_saved_does_not_change(tmp_path: Path) -> None:
    lean, plain = lean_and_plain()
    for name, model in (("lean", lean), ("plain", plain)):
        model.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("lean", "plain")]
    assert files[0] == files[1]
    loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "lean").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits, lean(input_ids=IDS).logits)


def test_every_lean_layer_is_still_one_of_pefts() -> None:
    lean, _ = lean_and_plain()
    layers = [module for module in lean.modules() if type(module).__name__ == "LeanLinear"]
    assert len(layers) == 14
    assert all(isinstance(layer, peft.tuners.lora.Linear) for layer in layers)
