"""Which of the shipped configurations fit this machine, by their plans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orpo_lightning.checkup.base import Check

CONFIGS = Path(__file__).parent.parent.parent / "configs"
_NAMES = ("quickstart", "smollm2", "qwen", "llama", "mistral")
"""From the smallest on."""


def configurations() -> Iterator[Check]:
    """Plan each shipped configuration on the device that training would take."""
    from orpo_lightning import hardware

    files = [CONFIGS / f"{name}.yaml" for name in _NAMES]
    if not all(file.is_file() for file in files):
        yield Check("configurations", "ok", "not looked at: they come with a clone of the repository")
        return
    device = hardware.detect_device()
    memory = _memory(device.kind)
    if memory is None:
        yield Check("configurations", "ok", f"not looked at: the memory of {device.kind} is not known")
        return
    from orpo_lightning.commands.config_cli import ConfigCLI

    parser = ConfigCLI("doctor", ["--config", str(files[0])]).parser
    for file in files:
        yield _planned(file, parser.parse_args(["--config", str(file)]), device, memory)


def _memory(kind: str) -> int | None:
    import torch

    from orpo_lightning.recomputation import available_ram

    if kind == "cuda":
        return min(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count()))
    return available_ram() if kind == "cpu" else None


def _planned(file: Path, config: Any, device: Any, memory: int) -> Check:
    from orpo_lightning.planning.gpus import GIB
    from orpo_lightning.planning.peak import plan

    subject = _subject(config)
    needed = plan(subject.model, subject.training(device), subject.largest()).total
    found = f"{file.stem} needs {needed / GIB:.1f} of {memory / GIB:.1f} GiB"
    if needed <= memory:
        return Check("fits", "ok", found)
    return Check(
        "does not fit", "ok", f"{found}: plan --config {file.parent.name}/{file.name} says what would"
    )


def _subject(config: Any) -> Any:
    from transformers import AutoConfig

    from orpo_lightning.commands.plan import subject_of
    from orpo_lightning.planning.known import SHAPES

    shape = SHAPES.get(config.model.base_model)
    if shape is None:
        config.model.base_model = str(CONFIGS.parent / config.model.base_model)
        return subject_of(config)
    return subject_of(config, AutoConfig.for_model(**shape))
