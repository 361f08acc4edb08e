"""GPUs by their data sheets: memory, capability, speed of half-precision matrix products."""

from __future__ import annotations

import re
from typing import NamedTuple

from orpo_lightning.errors import UsageError
from orpo_lightning.hardware import Device

MIB = 2**20
GIB = 2**30


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    mebibytes: int
    """As the driver reports it, ECC on where it is by default."""
    capability: tuple[int, int]
    teraflops: float
    """Dense bf16 (fp16 before Ampere) with fp32 accumulation, as the maker states it."""

    @property
    def bytes(self) -> int:
        """Its memory."""
        return self.mebibytes * MIB

    def device(self) -> Device:
        """Return the facts that decide precision and attention; of packages nothing is assumed."""
        return Device("cuda", self.name, self.capability)


GPUS = (
    Gpu("T4", 15360, (7, 5), 65),
    Gpu("V100-16GB", 16160, (7, 0), 125),
    Gpu("V100-32GB", 32510, (7, 0), 125),
    Gpu("RTX 3060", 12288, (8, 6), 51),
    Gpu("RTX 3090", 24576, (8, 6), 71),
    Gpu("RTX 4090", 24564, (8, 9), 165),
    Gpu("RTX 5090", 32607, (12, 0), 209),
    Gpu("A10", 23028, (8, 6), 125),
    Gpu("L4", 23034, (8, 9), 121),
    Gpu("L40S", 46068, (8, 9), 362),
    Gpu("A6000", 49140, (8, 6), 155),
    Gpu("A100-40GB", 40960, (8, 0), 312),
    Gpu("A100-80GB", 81920, (8, 0), 312),
    Gpu("H100", 81559, (9, 0), 989),
    Gpu("H200", 143771, (9, 0), 989),
    Gpu("B200", 183359, (10, 0), 2250),
)


def find_gpu(name: str) -> Gpu:
    """Return the GPU that a name means, however it is spelt.

    Raises:
        UsageError: there is none of that name, or several.
    """
    asked = _plain(name)
    exact = [gpu for gpu in GPUS if _plain(gpu.name) == asked]
    found = exact or [gpu for gpu in GPUS if _plain(gpu.name).startswith(asked) or asked in _plain(gpu.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(gpu.name for gpu in found or GPUS)
    raise UsageError(f"--gpu {name}: expected one of {names}; or give its size: --memory GB")


def _plain(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "")
    return "".join(letter for letter in words if letter.isalnum()).removesuffix("gb")


# What a driver's name of a GPU may say besides, without meaning another chip or other clocks.
_SAYS_NOTHING = re.compile(r"nvidia|tesla|geforce|rtx|gpu|sxm\d?|hbm\d?e?|\d+gb")


def gpu_of_driver(name: str) -> Gpu | None:
    """Return the GPU that a driver's name means ("NVIDIA A100-SXM4-80GB"); None where it may be another.

    A laptop's RTX 4090, an H100 on PCIe or a part of a GPU (MIG) are slower than the one of that name.
    """
    words = _words(name)
    if "a100" in words:
        words.discard("pcie")  # as fast
    return next((gpu for gpu in GPUS if words and _words(gpu.name) == words), None)


def _words(name: str) -> set[str]:
    found = re.findall(r"[a-z0-9]+", name.lower())
    return {word for word in found if not _SAYS_NOTHING.fullmatch(word)}
