"""What vLLM's loader of LoRA adapters takes, told from the adapter's own files.

The rules are those of vLLM 0.33 (vllm/lora/peft_helper.py, lora_model.py, utils.py; vllm/config/lora.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that --max-lora-rank may have."""
_ENDS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
_OF_THE_BASE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


_NOT_SUPPORTED = ("lora_bias", "layer_replication", "alora_invocation_tokens", "use_bdlora", "use_qalora")
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations that leave the base as it is."""


def max_lora_rank(rank: int) -> int | None:
    """Return the smallest --max-lora-rank that an adapter of this rank fits in; None where there is none."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def largest_rank(config: Mapping[str, Any]) -> int:
    """Return the largest rank of any layer of an adapter."""
    return max([config["r"], *(config.get("rank_pattern") or {}).values()])


def refusals(config: Mapping[str, Any], weights: Iterable[str], lora_init: str = "default") -> list[str]:
    """Return why vLLM will not load an adapter, or would load it wrong; nothing where it will.

    Args:
        config: its adapter_config.json.
        weights: the names of its tensors.
        lora_init: how it began.
    """
    found = ["DoRA is not supported"] if config.get("use_dora") else []
    if config.get("modules_to_save"):
        found.append(f"modules_to_save is not supported: {', '.join(config['modules_to_save'])}")
    if config.get("bias", "none") != "none":
        found.append("trained biases are not supported")
    found += [f"{key} is not supported" for key in _NOT_SUPPORTED if config.get(key)]
    if config.get("trainable_token_indices"):
        found.append("rows of trained tokens are not supported")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        found.append("an adapter as PiSSA or LoftQ leaves it is of a changed base")
    if max_lora_rank(largest_rank(config)) is None:
        found.append(f"rank {largest_rank(config)} is above the largest, {RANKS[-1]}")
    if lora_init == "loftq":
        found.append("a LoftQ adapter is right on its own nf4 weights alone")
    others = [name for name in weights if not name.endswith((*_ENDS, *_OF_THE_BASE))]
    if others and not found:
        found.append(f"its weight {others[0]} is none of LoRA's")
    return found


def warnings(config: Mapping[str, Any]) -> list[str]:
    """Return what not every version of vLLM gets right."""
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return ["ranks or alphas differ between layers, which older versions overlook: vLLM 0.33 reads them"]
    return []
