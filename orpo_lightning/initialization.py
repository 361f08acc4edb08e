"""LoRA's settings checked, and the initialisations that look at the base's weights: LoftQ and PiSSA."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import LoraInit, Quantization


def check_lora(r: int, dropout: float, quantization: Quantization) -> None:
    """Refuse ranks and dropouts that mean nothing, and training what is quantised.

    Raises:
        UsageError: naming the key.
    """
    if r < 0:
        raise UsageError(f"model.lora_r: expected 0 (full fine-tuning) or more, found {r}")
    if not 0 <= dropout < 1:
        raise UsageError(f"model.lora_dropout: expected a share from 0 to below 1, found {dropout}")
    if r == 0 and quantization != "none":
        raise UsageError(
            f"model.quantization: {quantization} weights cannot be trained; set lora_r above 0, or none"
        )


def check_initialization(init: LoraInit, quantization: Quantization) -> None:
    """Refuse what cannot be: LoftQ repairs a 4-bit base, PiSSA needs an unquantised one.

    Raises:
        UsageError: naming the value that fits.
    """
    if init == "loftq" and quantization != "nf4":
        raise UsageError(f"model.lora_init: loftq needs model.quantization: nf4, found {quantization}")
    if init == "pissa" and quantization != "none":
        raise UsageError(f"model.lora_init: pissa needs model.quantization: none, found {quantization}")


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return balanced A (rank, in) and B (out, rank), B @ A the best approximation of matrix (out, in)."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


@torch.no_grad()
def apply_loftq(model: PeftModel, original: torch.nn.Module) -> None:
    """Start LoRA at the quantisation error, so that the adapted 4-bit model is close to the original one.

    One alternation of LoftQ (Li et al. 2023, arXiv 2310.08659, Algorithm 1, T = 1): B @ A * scaling is the
    best rank-r approximation of W - dequantised(W). (PEFT's routine needs CUDA and takes scaling to be 1.)

    Args:
        model: LoRA on an NF4 base.
        original: the same base, not quantised.
    """
    import bitsandbytes as bnb

    for name, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "lora_A") or type(layer.get_base_layer()).__name__ != "Linear4bit":
            continue
        weight: Any = layer.get_base_layer().weight
        reference: Any = original.get_submodule(name).weight
        exact = reference.to(weight.device, torch.float32)
        error = exact - bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        a, b = low_rank(error / layer.scaling["default"], layer.r["default"])
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)


def keep_initial_adapter(model: PeftModel) -> tempfile.TemporaryDirectory[str]:
    """Save the adapter as it was initialised.

    PiSSA moves part of the base's weights into the adapter; the difference to this copy is what an ordinary
    base model needs (PEFT's `path_initial_model_for_weight_conversion`).
    """
    folder = tempfile.TemporaryDirectory(prefix="orpo-initial-adapter-")
    config: Any = model.peft_config["default"]
    kind, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder.name)
    config.init_lora_weights = kind
    return folder
