"""What a device can do, and what follows from it: precision, attention, compute dtype, each with its reason.

Everything but `detect_device` is a pure function of a tuple of facts, so that every generation of hardware
is a row of a test table and none of them has to be bought.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import NamedTuple

import torch

from orpo_lightning.errors import SurroundingsError, UsageError

log = logging.getLogger(__name__)

# Ampere: the first generation with bfloat16 in hardware, and the oldest that FlashAttention-2 runs on.
_AMPERE = (8, 0)
_SUPPORTED = ("32-true", "bf16-mixed", "16-mixed", "64-true")
# The short spellings that the Trainer accepts as well.
_ALIASES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
_COMPUTE_DTYPES = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


class Device(NamedTuple):
    """The facts about a device that decide anything here.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        name: What the driver calls it, for the header.
        capability: CUDA compute capability, None elsewhere.
        flash_attn: Whether the flash-attn package can be imported.
    """

    kind: str
    name: str
    capability: tuple[int, int] | None = None
    flash_attn: bool = False


class Choice(NamedTuple):
    """A value that was chosen, and why in words for the header."""

    value: str
    reason: str


def choose_precision(device: Device) -> Choice:
    """Pick the fastest Trainer precision that trains float32 adapters safely on this device."""
    if device.kind == "cuda":
        if _at_least_ampere(device):
            return Choice("bf16-mixed", f"{_capability(device)} has bfloat16, no loss scaling needed")
        return Choice("16-mixed", f"{_capability(device)} has no bfloat16: float16 with loss scaling")
    if device.kind == "mps":
        return Choice("32-true", "MPS: autocast is incomplete there, bf16-mixed may be set")
    return Choice("32-true", "CPU: half precision saves little time there, bf16-mixed may be set")


def choose_attention(device: Device, precision: str | int) -> Choice:
    """Pick the attention kernel: FlashAttention-2 where it can run, else torch's own."""
    if device.kind != "cuda":
        return Choice("sdpa", f"torch's own kernels on {device.kind.upper()}")
    if not _at_least_ampere(device):
        return Choice("sdpa", f"FlashAttention-2 needs capability 8.0, {_capability(device)} is below")
    if compute_dtype(precision) not in (torch.bfloat16, torch.float16):
        return Choice("sdpa", f"FlashAttention-2 needs a half precision, this run uses {precision}")
    if not device.flash_attn:
        return Choice("sdpa", "torch's own flash kernels (package flash-attn is not installed)")
    return Choice("flash_attention_2", f"{_capability(device)} and package flash-attn is installed")


def compute_dtype(precision: str | int) -> torch.dtype:
    """Return the dtype in which the frozen weights are kept and the matrix products are done."""
    name = normalize_precision(precision)
    if name not in _COMPUTE_DTYPES:
        raise UsageError(f"trainer.precision {precision!r} cannot be used here: expected one of {_listed()}")
    return _COMPUTE_DTYPES[name]


def normalize_precision(precision: str | int) -> str:
    """Spell out the Trainer's short forms (16, "bf16", 32, 64)."""
    return _ALIASES.get(str(precision), str(precision))


def check_precision(device: Device, precision: str | int) -> None:
    """Refuse a precision that cannot work on this device or that ruins training without a word.

    Raises:
        UsageError: names the value to use instead.
    """
    name = normalize_precision(precision)
    best = choose_precision(device).value
    if name in ("16-true", "bf16-true"):
        # Lightning would cast the adapters and their optimizer state too: at usual learning rates more than
        # nine of ten updates then round to nothing (bfloat16), or the weights are NaN by step two (float16).
        raise UsageError(
            f"trainer.precision {name} casts the trained weights to half precision, losing small updates: "
            f"use {best if best != '32-true' else 'bf16-mixed or 32-true'}"
        )
    if name not in _SUPPORTED:
        raise UsageError(f"trainer.precision {precision!r} cannot be used here: expected one of {_listed()}")
    if name == "bf16-mixed" and device.kind == "cuda" and not _at_least_ampere(device):
        raise UsageError(
            f"trainer.precision {name} needs compute capability 8.0 or newer, found {device.name} "
            f"({_capability(device)}): use 16-mixed"
        )
    if name == "16-mixed" and device.kind != "cuda":
        raise UsageError(
            f"trainer.precision {name} needs a CUDA GPU, found {device.name}: use {best} or bf16-mixed"
        )
    if name == "64-true" and device.kind == "mps":
        raise UsageError("trainer.precision 64-true cannot work on MPS, which has no float64: use 32-true")


def check_attention(device: Device, precision: str | int, attention: str) -> None:
    """Refuse an attention kernel that cannot run here.

    Raises:
        UsageError: names the value to use instead.
    """
    if attention != "flash_attention_2":
        return
    wanted = "model.attention flash_attention_2"
    if device.kind != "cuda":
        raise UsageError(f"{wanted} needs a CUDA GPU, found {device.name}: use sdpa")
    if not _at_least_ampere(device):
        raise UsageError(
            f"{wanted} needs compute capability 8.0 or newer, found {device.name} ({_capability(device)}): "
            "use sdpa"
        )
    if not device.flash_attn:
        raise UsageError(f"{wanted} needs the package flash-attn, not installed here: use sdpa")
    if compute_dtype(precision) not in (torch.bfloat16, torch.float16):
        raise UsageError(f"{wanted} needs a half precision, found {precision}: use bf16-mixed, or sdpa")


def detect_device(accelerator: str = "auto") -> Device:
    """Read the facts from torch: the only function here that looks at the machine.

    Args:
        accelerator: The Trainer's value; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        SurroundingsError: the accelerator asked for is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    found = "cuda" if cuda else "mps" if mps else "cpu"
    wanted = found if accelerator == "auto" or (accelerator == "gpu" and found != "cpu") else accelerator
    if wanted == "cuda" and cuda:
        return _cuda_device()
    if wanted == "mps" and mps:
        return Device("mps", "Apple GPU")
    if wanted == "cpu":
        return Device("cpu", "CPU")
    raise SurroundingsError(f"trainer.accelerator {accelerator} is not available: auto takes {found} here")


def _cuda_device() -> Device:
    # Every rank must make the same choice, so the weakest of the visible GPUs decides for all.
    devices = range(torch.cuda.device_count())
    weakest = min(devices, key=torch.cuda.get_device_capability)
    return Device(
        "cuda",
        torch.cuda.get_device_name(weakest),
        torch.cuda.get_device_capability(weakest),
        _flash_attn_importable(),
    )


def _flash_attn_importable() -> bool:
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        # A wheel built for another torch is installed and yet cannot be imported; find_spec would not tell.
        package = importlib.import_module("flash_attn")
    except ImportError as error:
        log.warning("package flash-attn is installed but cannot be imported, not used: %s", error)
        return False
    return hasattr(package, "flash_attn_varlen_func")  # FlashAttention-4 alone has the name, and not these


def _at_least_ampere(device: Device) -> bool:
    return device.capability is not None and device.capability >= _AMPERE


def _capability(device: Device) -> str:
    if device.capability is None:
        return f"{device.name} of unknown capability"
    return "compute capability {}.{}".format(*device.capability)


def _listed() -> str:
    return ", ".join(_SUPPORTED)
