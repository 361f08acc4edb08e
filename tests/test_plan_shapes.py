"""A model's shape from its config alone: every weight counted once, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, tiny_model
from transformers import AutoConfig

from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import SEVEN_PROJECTIONS, add_lora, load_base, parameter_counts
from orpo_lightning.planning import weights
from orpo_lightning.planning.settings import training_of
from orpo_lightning.planning.shapes import read_model


@pytest.mark.parametrize(
    ("family", "targets"),
    [(family, "all-linear") for family in FAMILIES]
    + [(family, SEVEN_PROJECTIONS) for family in FAMILIES if family.endswith("moe") or "seek" in family],
    ids=str,
)
def test_weights_and_trained_weights_are_those_of_the_real_model(family: str, targets: Any) -> None:
    real = tiny_model(family)
    shape = read_model(real.config, targets)
    assert shape.unfit == ""
    assert shape.weights == sum(parameter.numel() for parameter in real.parameters())
    lora: dict[str, Any] = {"alpha": 8, "dropout": 0.0, "variant": "lora", "init": "default"}
    adapted = add_lora(real, r=4, targets=targets, **lora)
    training = training_of(precision="32-true", lora_r=4)
    assert weights.trained_weights(shape, training) == parameter_counts(adapted)[1]
    full = training_of(precision="32-true", lora_r=0)
    assert weights.trained_weights(shape, full) == shape.weights


def test_the_parts_of_a_llama_layer_are_told_apart() -> None:
    config = tiny_model("llama", num_key_value_heads=2).config
    layer = read_model(config, ["q_proj", "down_proj"]).layers[0]
    assert [(m.place, m.inputs, m.outputs, m.adapted) for m in layer.linears] == [
        ("attention_in", 64, 64, True),
        ("attention_in", 64, 32, False),
        ("attention_in", 64, 32, False),
        ("attention_out", 64, 64, False),
        ("mlp_in", 64, 128, False),
        ("mlp_in", 64, 128, False),
        ("mlp_out", 128, 64, True),
    ]
    assert layer.norms == (64, 64)
    assert layer.gated
    assert (layer.query_width, layer.key_width, layer.mlp_width) == (64, 32, 128)


def test_norms_of_queries_and_keys_run_over_all_heads() -> None:
    layer = read_model(tiny_model("qwen3").config, SEVEN_PROJECTIONS).layers[0]
    assert sorted(layer.norms) == [32, 64, 64, 64]


def test_a_plain_mlp_and_joined_projections_are_understood() -> None:
    layer = read_model(tiny_model("gpt2").config, ["c_attn"]).layers[0]
    assert [(m.place, m.inputs, m.outputs) for m in layer.linears] == [
        ("attention_in", 64, 192),
        ("attention_out", 64, 64),
        ("mlp_in", 64, 128),
        ("mlp_out", 128, 64),
    ]
    assert not layer.gated
    assert layer.activation == "gelu_new"


def test_lora_on_fused_experts_has_a_rank_for_each_expert_and_two_for_gate_and_up() -> None:
    # PEFT adapts what the names meant when experts were layers of their own; hidden 64, 4 experts of 32.
    layer = read_model(tiny_model("qwen3_moe").config, SEVEN_PROJECTIONS).layers[0]
    assert sorted(layer.adapters) == [(32, 64, 4, 4 * 64 * 32), (64, 64, 8, 4 * 64 * 64)]


def test_a_pattern_chooses_whole_names() -> None:
    shape = read_model(tiny_model("llama").config, r".*\.0\..*q_proj")
    assert [sum(m.adapted for m in layer.linears) for layer in shape.layers] == [1, 0]


def test_the_head_can_be_adapted() -> None:
    assert read_model(tiny_model("llama").config, ["q_proj", "lm_head"]).adapted_head
    assert not read_model(tiny_model("llama").config, "all-linear").adapted_head


def test_targets_that_no_layer_has_are_refused_as_in_a_run() -> None:
    with pytest.raises(UsageError, match=r"model.lora_targets: \['c_attn'\] match no layer"):
        read_model(tiny_model("llama").config, ["c_attn"])


def test_a_tied_head_is_counted_once() -> None:
    tied = read_model(tiny_model("llama", tie_word_embeddings=True).config, SEVEN_PROJECTIONS)
    untied = read_model(tiny_model("llama").config, SEVEN_PROJECTIONS)
    assert (tied.head_weights, untied.head_weights) == (0, 128 * 64)
    assert untied.weights - tied.weights == 128 * 64


def test_windows_are_those_of_each_layer() -> None:
    layers = read_model(tiny_model("qwen2").config, SEVEN_PROJECTIONS).layers
    assert [layer.window for layer in layers] == [None, 8]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_weights_take_the_bytes_that_bitsandbytes_gives_them(
    quantization: Any, tmp_path: Path
) -> None:
    tiny_model("llama", hidden_size=128, intermediate_size=384).save_pretrained(tmp_path)
    real = load_base(str(tmp_path), quantization=quantization, dtype=torch.bfloat16)
    found = 0
    for parameter in real.parameters():
        found += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        for part in (state, state and state.state2):
            found += 0 if part is None else part.absmax.nbytes + part.code.nbytes
    for module in real.modules():
        scales = getattr(getattr(module, "weight", None), "SCB", None)
        found += 0 if scales is None else scales.nbytes
    shape = read_model(AutoConfig.from_pretrained(tmp_path), SEVEN_PROJECTIONS)
    training = training_of(precision="bf16-mixed", quantization=quantization)
    planned = weights.quantised_bytes(shape, training) + weights.unquantised_bytes(shape, training)
    assert planned == pytest.approx(found, rel=1e-3)


def test_an_architecture_that_cannot_be_built_is_one_line() -> None:
    config = AutoConfig.for_model("t5")
    with pytest.raises(UsageError, match=r"model.base_model: cannot build a t5 from its config"):
        read_model(config, SEVEN_PROJECTIONS)
