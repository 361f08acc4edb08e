"""From the values of a configuration to the facts of a plan."""

from __future__ import annotations

from typing import Any

from orpo_lightning.hardware import compute_dtype, normalize_precision
from orpo_lightning.planning.base import Optimizer, Training

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def training_of(
    *,
    precision: str | int,
    quantization: str = "none",
    dtype: str = "auto",
    lora_r: int = 16,
    lora_dropout: float = 0.05,
    lora_variant: str = "lora",
    trained_rows: int = 0,
    optimizer: Optimizer | None = None,
    gradient_checkpointing: bool | str = True,
    layers: int = 0,
    accumulate: int = 1,
    attention: str = "sdpa",
    device: str = "cuda",
) -> Training:
    """Return how a model is trained, from the values of the keys of the same names.

    Args:
        precision: `trainer.precision`, resolved.
        quantization: of `model`, like the next five.
        dtype: auto follows precision, or is float32 where all weights are trained.
        lora_r: 0 trains all weights.
        lora_dropout: in front of LoRA.
        lora_variant: dora has magnitudes.
        trained_rows: how many `trainable_tokens` there are.
        optimizer: torch's AdamW where left out.
        gradient_checkpointing: whether all layers are recomputed; offload: from the host's memory.
        layers: how many the model has.
        accumulate: micro-batches to an optimizer step.
        attention: resolved.
        device: cuda, mps or cpu.
    """
    product = compute_dtype(precision).itemsize
    automatic = product if lora_r else 4
    weight_bytes = automatic if dtype == "auto" else _BYTES[dtype]
    autocast = normalize_precision(precision).endswith("-mixed")
    return Training(
        quantization=quantization,
        weight_bytes=weight_bytes,
        compute_bytes=product if autocast else weight_bytes,
        autocast=autocast,
        lora_r=lora_r,
        dropout=bool(lora_r and lora_dropout),
        optimizer=optimizer or Optimizer("AdamW"),
        recomputed=layers if gradient_checkpointing else 0,
        accumulated=accumulate > 1,
        dora=lora_variant == "dora",
        trained_rows=trained_rows,
        attention=attention,
        device=device,
        offloaded=gradient_checkpointing == "offload",
        scales_loss=normalize_precision(precision) == "16-mixed",
    )


def optimizer_of(configured: Any) -> Optimizer:
    """Return an optimizer's name and what of its arguments decides its memory.

    Args:
        configured: a mapping with `class_path` and `init_args`, as configurations have it.
    """
    path = str(configured.get("class_path", "") if hasattr(configured, "get") else configured)
    arguments = configured.get("init_args") or {} if hasattr(configured, "get") else {}
    return Optimizer(
        path.rpartition(".")[2] or "AdamW",
        rank=int(arguments.get("rank") or 128),
        momentum=bool(arguments.get("momentum")),
    )
