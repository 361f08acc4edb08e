"""Loading, quantising, adapting: each against what it should equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import random_pairs
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from training import loader, make_trainer

from orpo_lightning import PreferenceModule
from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.hardware import Choice
from orpo_lightning.modeling import (
    add_lora,
    disable_dropout,
    load_base,
    load_config,
    parameter_counts,
    supported_attention,
    unlearnable_stop_tokens,
)

IDS = torch.tensor([[5, 9, 40, 41, 80, 7]])


def logits(model: Any) -> torch.Tensor:
    """Return the model's logits on a fixed input."""
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_nf4_model_equals_one_whose_weights_are_the_dequantised_ones(tiny_base: str) -> None:
    import bitsandbytes as bnb

    quantised = load_base(tiny_base, quantization="nf4")
    plain = load_base(tiny_base)
    replaced = 0
    for name, layer in quantised.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            assert layer.weight.quant_type == "nf4"
            assert layer.weight.quant_state.nested  # double quantisation
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            assert not torch.allclose(weight, plain.get_submodule(name).weight, atol=1e-4)
            plain.get_submodule(name).weight.data = weight
            replaced += 1
    assert replaced == 14  # seven projections in two layers
    assert torch.allclose(logits(quantised), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_trains_its_adapter(tiny_base: str, quantization: Any) -> None:
    module = PreferenceModule(
        tiny_base,
        quantization=quantization,
        lora_r=4,
        warmup=0,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    )
    batches = loader(random_pairs(16, 100), 16)
    before = make_trainer().validate(module, batches, verbose=False)[0]["val/loss"]
    make_trainer(max_steps=8, max_epochs=8).fit(module, batches)
    after = make_trainer().validate(module, batches, verbose=False)[0]["val/loss"]
    assert after < before


def test_a_validation_in_between_leaves_the_gradients_of_the_quantised_model_as_they_were(
    tiny_base: str,
) -> None:
    model = load_base(tiny_base, quantization="nf4")

    def gradient() -> torch.Tensor:
        model.train()
        model.zero_grad()
        model(input_ids=IDS).logits.square().mean().backward()
        return model.model.embed_tokens.weight.grad.clone()

    before = gradient()
    model.eval()
    logits(model)
    assert before.abs().max() > 0
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_every_variant_starts_as_the_base_model(tiny_base: str, variant: Any) -> None:
    base = load_base(tiny_base)
    wanted = logits(base)
    model = add_lora(base, r=4, alpha=8, dropout=0.0, targets="all-linear", variant=variant, init="default")
    assert torch.allclose(logits(model), wanted, atol=1e-5)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == (8 / 2 if variant == "rslora" else 8 / 4)
    assert ("default" in layer.lora_magnitude_vector) == (variant == "dora")


def test_pissa_starts_as_the_base_with_its_largest_directions_in_the_adapter(tiny_base: str) -> None:
    base = load_base(tiny_base)
    wanted, original = logits(base), base.model.layers[0].self_attn.q_proj.weight.clone()
    model = add_lora(base, r=4, alpha=4, dropout=0.0, targets=["q_proj"], variant="lora", init="pissa")
    assert torch.allclose(logits(model), wanted, atol=1e-4)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    left, values, right = torch.linalg.svd(original)
    assert torch.allclose(product, left[:, :4] * values[:4] @ right[:4], atol=1e-4)


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_loftq_brings_the_quantised_model_closer_to_the_original(tiny_base: str, variant: Any) -> None:
    exact = logits(load_base(tiny_base))
    plain = logits(load_base(tiny_base, quantization="nf4"))
    module = PreferenceModule(
        tiny_base, quantization="nf4", lora_r=16, lora_alpha=24, lora_variant=variant, lora_init="loftq"
    )
    module.configure_model()
    module.model.eval()
    assert (logits(module.model) - exact).norm() < 0.8 * (plain - exact).norm()


def test_only_the_adapter_is_trained_and_four_bit_weights_count_as_what_they_stand_for(
    tiny_base: str,
) -> None:
    plain, quantised = load_base(tiny_base), load_base(tiny_base, quantization="nf4")
    total = sum(p.numel() for p in plain.parameters())
    assert parameter_counts(quantised)[0] == total
    model = add_lora(quantised, r=2, alpha=2, dropout=0.0, targets=["q_proj"], variant="lora", init="default")
    # q_proj is 64 × 64 in two layers: A is 2 × 64, B is 64 × 2.
    assert parameter_counts(model) == (total + 2 * 256, 2 * 256)


def test_dropout_of_the_base_is_off_and_that_of_lora_stays(tmp_path: Path) -> None:
    from tiny_models import tiny_model

    model = tiny_model("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3)
    disable_dropout(model)
    model = add_lora(model, r=2, alpha=2, dropout=0.25, targets=["c_attn"], variant="lora", init="default")
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if "lora" in name} == {0.25}
    assert {rate for name, rate in rates.items() if "lora" not in name} == {0.0}


def test_dropout_that_is_a_number_in_the_attention_is_off_too() -> None:
    from tiny_models import tiny_model

    model = tiny_model("llama", attention_dropout=0.5)
    disable_dropout(model)
    model.train()
    assert torch.equal(logits(model), logits(model))


def test_targets_that_match_nothing_are_refused_with_the_names_there_are(tiny_base: str) -> None:
    with pytest.raises(UsageError, match=r"c_attn.*q_proj"):
        add_lora(
            load_base(tiny_base),
            r=2,
            alpha=2,
            dropout=0.0,
            targets=["c_attn"],
            variant="lora",
            init="default",
        )


def test_a_folder_that_lacks_a_weight_is_refused_instead_of_trained_with_random_numbers(
    tiny_base: str, tmp_path: Path
) -> None:
    weights = load_file(Path(tiny_base) / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((Path(tiny_base) / "config.json").read_text())
    with pytest.raises(SurroundingsError, match=r"layers\.1\.mlp\.up_proj"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    "damage", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]
)
def test_a_damaged_weight_file_is_one_line(tiny_base: str, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(damage)
    (tmp_path / "config.json").write_text((Path(tiny_base) / "config.json").read_text())
    with pytest.raises(SurroundingsError) as caught:
        load_base(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_model_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SurroundingsError, match="no/such-model"):
        load_config("no/such-model", revision=None, trust_remote_code=False)


def test_an_encoder_decoder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UsageError, match="encoder-decoder"):
        load_config(str(tmp_path), revision=None, trust_remote_code=False)


def test_an_architecture_without_sdpa_gets_eager_attention_and_the_reason() -> None:
    from transformers import Gemma2Config, LlamaConfig

    sdpa = Choice("sdpa", "torch's own kernels")
    assert supported_attention(LlamaConfig(), sdpa) == sdpa
    assert supported_attention(Gemma2Config(), sdpa).value == "eager"
    assert "sdpa" in supported_attention(Gemma2Config(), sdpa).reason


def test_a_stop_token_that_no_config_names_cannot_be_learned_by_lora_alone(tiny_base: str) -> None:
    def unlearnable(*token_rows: int) -> list[int]:
        base = load_base(tiny_base)
        settings: dict[str, Any] = {"r": 2, "alpha": 2, "dropout": 0.0, "targets": ["q_proj"]}
        model = add_lora(base, variant="lora", init="default", trainable_token_ids=token_rows, **settings)
        return unlearnable_stop_tokens(model, [base.config.eos_token_id, 5])

    assert unlearnable() == [5]
    assert unlearnable(5) == []
    assert unlearnable_stop_tokens(load_base(tiny_base), [5]) == []  # all weights are trained


def test_single_rows_are_not_trained_where_peft_would_lose_the_heads_bias() -> None:
    model = tiny_model("phi")
    assert model.lm_head.bias is not None
    settings: dict[str, Any] = {"r": 2, "alpha": 2, "dropout": 0.0, "targets": ["q_proj"]}
    with pytest.raises(UsageError, match="the head of PhiForCausalLM has a bias"):
        add_lora(model, variant="lora", init="default", trainable_token_ids=[5], **settings)


def test_an_adapter_begins_with_the_same_values_whatever_the_default_device(tiny_base: str) -> None:
    settings: dict[str, Any] = {"r": 2, "alpha": 2, "dropout": 0.0, "targets": ["q_proj"]}
    plain, moved = load_base(tiny_base), load_base(tiny_base)
    wanted = add_lora(plain, variant="lora", init="default", seed=3, **settings)
    with torch.device("meta"):  # Lightning's is the rank's GPU
        found = add_lora(moved, variant="lora", init="default", seed=3, **settings)
    values = dict(wanted.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in found.named_parameters())
