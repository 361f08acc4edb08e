"""Python, processor, memory, GPU, and the libraries that a GPU's kernels come from."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_lightning.checkup.base import Check

_LEAST_PYTHON = (3, 11)
_LITTLE_GIB = 4
GIB = 2**30


def python() -> Check:
    """Look at the interpreter."""
    version = platform.python_version()
    if sys.version_info[:2] < _LEAST_PYTHON:
        return Check("Python", "error", version, "install Python 3.11 or newer")
    return Check("Python", "ok", f"{version} ({sys.executable})")


def processor() -> Check:
    """Look at the system and how many threads this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check(
        "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}, {usable} threads"
    )


def memory() -> Check:
    """Look at the memory that this process can have."""
    from orpo_lightning.recomputation import available_ram

    free = available_ram()
    if free is None:
        return Check("memory", "warning", "not known here", "see that it is more than the model needs: plan")
    found = f"{free / GIB:.1f} GiB free of {_all_ram() / GIB:.1f} GiB"
    if free < _LITTLE_GIB * GIB:
        return Check("memory", "warning", found, "end other programs: a base is read into memory first")
    return Check("memory", "ok", found)


def _all_ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpus() -> Iterator[Check]:
    """Look at each GPU, and at what follows from the weakest for precision and attention."""
    import torch

    from orpo_lightning import hardware

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        room = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        found = f"{facts.name}, capability {facts.major}.{facts.minor}, {room}"
        if free < 0.9 * total:
            yield Check(f"GPU {index}", "warning", found, "another process holds memory: see nvidia-smi")
        else:
            yield Check(f"GPU {index}", "ok", found)
    device = hardware.detect_device()
    if device.kind == "cpu":
        yield _without_gpu(torch)
    precision = hardware.choose_precision(device)
    attention = hardware.choose_attention(device, precision.value)
    yield Check("precision", "ok", f"{precision.value} ({precision.reason})")
    yield Check("attention", "ok", f"{attention.value} ({attention.reason})")


def _without_gpu(torch: Any) -> Check:
    built = getattr(torch.version, "cuda", None)
    if built is None and Path("/proc/driver/nvidia/version").exists():
        return Check(
            "GPU",
            "error",
            "there is one, but this torch was built without CUDA",
            "install torch from pytorch.org for CUDA",
        )
    return Check(
        "GPU", "warning", "none: training runs on the CPU", "take a small model: configs/smollm2.yaml"
    )


def flash_attention() -> Check:
    """Look whether the package flash-attn can be used."""
    if importlib.util.find_spec("flash_attn") is None:
        return Check("flash-attn", "ok", "not installed: torch's own kernels are used")
    if not hasattr(importlib.import_module("flash_attn"), "flash_attn_varlen_func"):
        return Check("flash-attn", "ok", "not of generation 2: torch's own kernels are used")
    return Check("flash-attn", "ok", "installed")


def bitsandbytes() -> Check:
    """Quantise a small layer to NF4 on the device that training would take, and multiply with it."""
    import torch
    from bitsandbytes import __version__
    from bitsandbytes.nn import Linear4bit

    from orpo_lightning import hardware

    start = time.perf_counter()
    device = torch.device(hardware.detect_device().kind)
    plain = torch.nn.Linear(64, 64, bias=False)
    layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to(device)  # this quantises
    given = torch.randn(8, 64)
    with torch.no_grad():
        wanted, found = plain(given), layer(given.to(device)).cpu()
    error = float((found - wanted).norm() / wanted.norm())
    took = (
        f"an NF4 layer was quantised and multiplied on {device.type} in {time.perf_counter() - start:.1f} s"
    )
    words = f"{__version__}: {took}, relative error {error:.2f}"
    if not error < 0.3:
        return Check("bitsandbytes", "error", words, "install another version: see constraints.txt")
    return Check("bitsandbytes", "ok", words)
