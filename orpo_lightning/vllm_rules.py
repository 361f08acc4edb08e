"""What vLLM's loader of LoRA adapters takes, told from the adapter's own files.

The rules are those of vllm/lora/peft_helper.py, vllm/lora/lora_model.py and vllm/config/lora.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that --max-lora-rank may have."""
_ENDS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
_OF_THE_BASE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")


def max_lora_rank(rank: int) -> int | None:
    """Return the smallest --max-lora-rank that an adapter of this rank fits in; None where there is none."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)


def refusals(config: Mapping[str, Any], weights: Iterable[str], lora_init: str = "default") -> list[str]:
    """Return why vLLM will not load an adapter, or would load it wrong; nothing where it will.

    Args:
        config: its adapter_config.json.
        weights: the names of its tensors.
        lora_init: how it began.
    """
    found = []
    if config.get("use_dora"):
        found.append("DoRA is not supported")
    if config.get("modules_to_save"):
        found.append(f"modules_to_save is not supported: {', '.join(config['modules_to_save'])}")
    if config.get("bias", "none") != "none":
        found.append("trained biases are not supported")
    if config.get("trainable_token_indices"):
        found.append("rows of trained tokens are not supported")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append("ranks or alphas that differ between layers are not read: the numbers would be wrong")
    if max_lora_rank(config["r"]) is None:
        found.append(f"rank {config['r']} is above the largest, {RANKS[-1]}")
    if lora_init == "loftq":
        found.append("a LoftQ adapter is right on its own nf4 weights alone")
    others = [name for name in weights if not name.endswith((*_ENDS, *_OF_THE_BASE))]
    if others and not found:
        found.append(f"its weight {others[0]} is none of LoRA's")
    return found
