"""A model's shape, from its config: the real architecture is built without memory and looked at.

So is its LoRA: which layers, and which fused experts, PEFT adapts is for PEFT to say.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from orpo_lightning.errors import UsageError, first_line
from orpo_lightning.layouts import unfit
from orpo_lightning.modeling import add_lora
from orpo_lightning.planning.base import Adapter, Layer, Linear, Model, Place


def read_model(
    config: PretrainedConfig, targets: Sequence[str] | str, *, trust_remote_code: bool = False
) -> Model:
    """Return the shape of a config's model, for which nothing is allocated, nor downloaded but trusted code.

    Args:
        config: of a decoder-only language model.
        targets: `model.lora_targets`.
        trust_remote_code: build classes that come with the model.

    Raises:
        UsageError: the architecture cannot be built, is not made of layers, or has no such targets.
    """
    model = on_meta(config, trust_remote_code)
    text = config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    name, blocks = _blocks(model)
    layers = tuple(_layer(block, text) for block in blocks)
    total = sum(parameter.numel() for parameter in model.parameters())
    in_layers = sum(parameter.numel() for parameter in blocks.parameters())
    embedding_weights, head_weights = embedding.weight.numel(), 0 if tied else head.weight.numel()
    head_name = next((n for n, module in model.named_modules() if module is head), "")
    paths, reason = [_linear_paths(block) for block in blocks], unfit(model)
    adapted = _adapted(model, targets)  # the last look: from here on there is LoRA in the model
    return Model(
        architecture=type(model).__name__,
        vocabulary=text.vocab_size,
        hidden=text.hidden_size,
        layers=tuple(
            _with_lora(layer, paths[number], _inside(f"{name}.{number}", adapted))
            for number, layer in enumerate(layers)
        ),
        embedding_weights=embedding_weights,
        head_weights=head_weights,
        other_weights=total - in_layers - embedding_weights - head_weights,
        softcap=getattr(text, "final_logit_softcapping", None) is not None,
        adapted_head=head_name in adapted,
        unfit=reason or "",
    )


def on_meta(config: PretrainedConfig, trust_remote_code: bool) -> Any:
    """Return a config's model without memory for its weights.

    Raises:
        UsageError: the architecture cannot be built.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(
            f"model.base_model: cannot build a {config.model_type} from its config: {first_line(error)}"
        ) from error


def _adapted(model: Any, targets: Sequence[str] | str) -> dict[str, list[Adapter]]:
    """Add LoRA of rank 1, and return what was added to each module or, where it is fused, to its weights."""
    settings: dict[str, Any] = {"alpha": 1, "dropout": 0.0, "variant": "lora", "init": "default"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the real model gets its LoRA
        base: Any = add_lora(model, r=1, targets=targets, **settings).get_base_model()
    found: dict[str, list[Adapter]] = {}
    layers: list[tuple[str, Any]] = [(n, m) for n, m in base.named_modules() if isinstance(m, LoraLayer)]
    for path, module in layers:
        if "default" in module.lora_A:
            ranks, inputs = module.lora_A["default"].weight.shape
            outputs = module.lora_B["default"].weight.shape[0]
            # Two weights of one module are wrapped one around the other.
            name = path.replace(".base_layer", "")
            found.setdefault(name, []).append(Adapter(inputs, outputs, ranks, _wrapped_weights(module)))
    return found


def _wrapped_weights(module: Any) -> int:
    wrapped = getattr(module, "parameter_name", None)
    return module.get_param().numel() if wrapped else module.get_base_layer().weight.numel()


def _inside(name: str, adapted: dict[str, list[Adapter]]) -> dict[str, list[Adapter]]:
    """Return what was adapted in one layer, by the path in it."""
    prefix = f"{name}."
    return {path.removeprefix(prefix): found for path, found in adapted.items() if path.startswith(prefix)}


def _with_lora(layer: Layer, paths: list[str], adapted: dict[str, list[Adapter]]) -> Layer:
    linears = [
        matrix._replace(adapted=path in adapted) for path, matrix in zip(paths, layer.linears, strict=True)
    ]
    others = [one for path, found in adapted.items() if path not in paths for one in found]
    return layer._replace(linears=tuple(linears), adapters=tuple(others))


def _blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the decoder layers: the longest list of modules that is not inside another."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [
        (name, one) for name, one in lists if not any(name.startswith(f"{other}.") for other, _ in lists)
    ]
    if not outer:
        raise UsageError(f"model.base_model: found no list of layers in {type(model).__name__}")
    return max(outer, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def _linear_paths(block: nn.Module) -> list[str]:
    return [path for path, module in block.named_modules() if _is_linear(module)]


def _layer(block: nn.Module, config: PretrainedConfig) -> Layer:
    paths = _linear_paths(block)
    places = _places(paths)
    linears = tuple(Linear(*_sizes(block.get_submodule(path)), places[path], adapted=False) for path in paths)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    total = sum(parameter.numel() for parameter in block.parameters())
    return Layer(
        linears=linears,
        other_weights=total - sum(matrix.weights for matrix in linears),
        norms=_norms(block, config.hidden_size, heads, key_heads, head_dim),
        heads=heads,
        key_heads=key_heads,
        head_dim=head_dim,
        mlp_width=_mlp_width(block, linears),
        gated=_is_gated(linears),
        activation=str(getattr(config, "hidden_act", None) or getattr(config, "activation_function", "silu")),
        experts=_experts(block, config),
        window=_window(block, config),
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _sizes(module: Any) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape  # GPT-2's Conv1D is the other way round
    return inputs, outputs


def _places(paths: list[str]) -> dict[str, Place]:
    """Tell from the order that all architectures keep: in attention and MLP the last one leads out."""
    attention = [path for path in paths if _in_attention(path)]
    mlp = [path for path in paths if path not in attention]
    places: dict[str, Place] = {}
    for names, inner, last in ((attention, "attention_in", "attention_out"), (mlp, "mlp_in", "mlp_out")):
        places |= {name: cast("Place", last if name == names[-1] else inner) for name in names}
    return places


def _mlp_width(block: nn.Module, linears: tuple[Linear, ...]) -> int:
    inner = [matrix.inputs for matrix in linears if matrix.place == "mlp_out"]
    # Fused experts: (experts, out, in), the one that leads out last.
    fused = [parameter.shape[-1] for parameter in block.parameters() if parameter.ndim == 3]
    return fused[-1] if fused else inner[-1] if inner else 0


def _in_attention(path: str) -> bool:
    return "att" in path.rpartition(".")[0].lower()


def _is_gated(linears: tuple[Linear, ...]) -> bool:
    inner = sum(matrix.outputs for matrix in linears if matrix.place == "mlp_in")
    return not inner or any(inner >= 2 * matrix.inputs for matrix in linears if matrix.place == "mlp_out")


def _norms(block: nn.Module, hidden: int, heads: int, key_heads: int, head_dim: int) -> tuple[int, ...]:
    """Return what a token has in the input of each norm: one over a head's width runs once per head."""
    widths, per_head = [], [heads * head_dim, key_heads * head_dim]
    for path, module in block.named_modules():
        if "norm" not in type(module).__name__.lower():
            continue
        width = next((parameter.numel() for parameter in module.parameters()), hidden)
        inside = _in_attention(path) and width == head_dim and per_head
        widths.append(per_head.pop(0) if inside else width)
    return tuple(widths)


def _experts(block: nn.Module, config: PretrainedConfig) -> int:
    fused = any(parameter.ndim == 3 for parameter in block.parameters())
    return int(getattr(config, "num_experts_per_tok", None) or 1) if fused else 1


def _window(block: Any, config: PretrainedConfig) -> int | None:
    attention = next((m for m in block.modules() if hasattr(m, "sliding_window")), None)
    return getattr(attention, "sliding_window", None) if attention is not None else None
