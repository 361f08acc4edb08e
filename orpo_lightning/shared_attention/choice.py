"""Which backend runs attention over shared prefixes: a pure choice, and what is there to choose from."""

from __future__ import annotations

import importlib.util
from collections.abc import Set
from typing import NamedTuple

import torch

from orpo_lightning.hardware import Choice, Device
from orpo_lightning.shared_attention import packed, slices

SHORT = 96
"""Tokens of a pair, on average, below which one call of padded rows is faster than three slices a pair.

Measured on one core and on two, forward and backward: of 36 tokens rows take half the time, of 133 slices
two thirds of it."""
_AMPERE, _HOPPER = (8, 0), (9, 0)
# FlashAttention-2 and -3 have no kernels for wider heads.
_FLASH_WIDTH = 256


class Needs(NamedTuple):
    """What an architecture's attention asks of a backend."""

    dtype: torch.dtype
    width: int
    """Of the wider of keys and values."""
    window: bool = False
    """Whether some sequence is longer than the sliding window."""
    softcap: bool = False
    sinks: bool = False
    dropout: bool = False
    short: bool = False
    """Whether the pairs are so short that calling a kernel for each takes longer than padding them."""


def choose_backend(device: Device, needs: Needs, available: Set[str]) -> Choice:
    """Pick the backend that wastes least among those that compute the right thing.

    Args:
        device: where the tensors are.
        needs: what the architecture asks for.
        available: names of backends that can be loaded.
    """
    if device.kind == "cpu":
        return _on_cpu(needs, available)
    if device.kind != "cuda":
        return Choice("rows", f"torch's own attention on {device.kind.upper()}, rows padded on the right")
    if needs.dropout:
        return Choice("rows", "dropout of attention weights is torch's own attention's to do")
    flash = _flash(device, needs, available)
    if flash.value != "none":
        return flash
    if "flex_attention" in available and (device.capability or (0, 0)) >= (7, 0):
        return Choice("flex_attention", f"no FlashAttention: {flash.reason}")
    return Choice("rows", f"no FlashAttention: {flash.reason}; no FlexAttention either")


def _on_cpu(needs: Needs, available: Set[str]) -> Choice:
    asked = {"a window": needs.window, "a soft-cap": needs.softcap, "dropout": needs.dropout}
    beyond = [name for name, is_asked in asked.items() if is_asked]
    if beyond:
        return Choice("rows", f"torch's flash kernel on CPU has no answer to {' and '.join(beyond)}")
    if "slices" not in available:
        return Choice("rows", "this torch has no flash kernel for CPU that can be run on slices")
    if needs.short:
        return Choice("rows", f"pairs of fewer than {SHORT} tokens: one call for all takes less time")
    return Choice(
        "slices", f"torch's flash kernel for CPU, on slices of the row ({SHORT} tokens a pair or more)"
    )


def _flash(device: Device, needs: Needs, available: Set[str]) -> Choice:
    """Return a variable-length FlashAttention, or "none" and why."""
    capability = device.capability or (0, 0)
    if needs.dtype not in (torch.float16, torch.bfloat16):
        return Choice("none", f"it needs a half precision, this is {str(needs.dtype).removeprefix('torch.')}")
    if capability < _AMPERE:
        return Choice("none", "it needs compute capability 8.0, this is {}.{}".format(*capability))
    if needs.width > _FLASH_WIDTH:
        return Choice("none", f"its heads end at width {_FLASH_WIDTH}, these have {needs.width}")
    if needs.sinks:
        return Choice("none", "attention sinks need a gradient it does not give")
    if "flash_attn_3" in available and capability[0] == _HOPPER[0]:
        return Choice("flash_attn_3", "package flash-attn 3 on Hopper")
    if "flash_attn_2" in available:
        return Choice("flash_attn_2", "package flash-attn is installed")
    if needs.softcap:
        return Choice("none", "torch's own has no soft-cap, and package flash-attn is not installed")
    if "torch_varlen" in available:
        return Choice("torch_varlen", "torch's own FlashAttention (package flash-attn is not installed)")
    return Choice("none", "neither package flash-attn nor a torch that has it is installed")


def find_backends(kind: str) -> frozenset[str]:
    """Return what can be loaded on this machine for tensors on that kind of device.

    Looking for those of a GPU takes a quarter of a second, which a CPU need not wait for.
    """
    if kind == "cpu":
        return frozenset({"slices"} if slices.is_available() else ())
    found = {
        "flash_attn_3": _has("flash_attn_interface"),
        "flash_attn_2": _has("flash_attn"),
        "torch_varlen": packed.has_torch_varlen(),
        "flex_attention": _has("torch.nn.attention.flex_attention"),
    }
    return frozenset(name for name, is_there in found.items() if is_there)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
