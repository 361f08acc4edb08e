"""The plan against what CUDA's allocator says of a real training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peak_of_a_step import Case, Shape, planned, save_model
from torch.utils.data import DataLoader
from training import make_trainer

from orpo_lightning import PreferenceModule
from orpo_lightning.batching import TokenizedPair, pad_pairs

pytestmark = pytest.mark.gpu

# Large enough that CUDA's 2 MiB blocks and cuBLAS's workspace do not decide.
SHAPE = Shape(1024, 2816, 8, 32000, 16, 4, 2, 256, 768, 700)


def measure(base: str, shape: Shape, case: Case, *, checkpointing: bool) -> int:
    pair = TokenizedPair([1] * shape.prompt, [2] * shape.chosen, [3] * shape.rejected)
    batch = pad_pairs([pair] * shape.pairs, pad_id=0)
    module = PreferenceModule(base, gradient_checkpointing=checkpointing, **case.settings)
    trainer = make_trainer(accelerator="gpu", devices=1, precision=case.precision)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.fit(module, DataLoader([batch, batch], batch_size=None))  # type: ignore[arg-type]
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", [{}, {"quantization": "nf4"}, {"lora_r": 0}], ids=str)
def test_the_plans_tensors_are_within_a_tenth_of_max_memory_allocated(
    settings: dict[str, Any], checkpointing: bool, tmp_path: Path
) -> None:
    precision = "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    case = Case("on the GPU", {"attention": "sdpa", **settings}, precision)
    base = save_model(tmp_path, "llama", SHAPE)
    found = planned(base, SHAPE, case, checkpointing=checkpointing, device="cuda")
    measured = measure(base, SHAPE, case, checkpointing=checkpointing)
    assert found.parts.tensors == pytest.approx(measured, rel=0.1)
