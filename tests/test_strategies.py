"""Which strategy a run of several processes gets, and what is refused before anything loads."""

from __future__ import annotations

from typing import Any

import pytest

from orpo_lightning.errors import UsageError
from orpo_lightning.strategies import DDP, FSDP2, TIMEOUT, Plan, choose_strategy


@pytest.mark.parametrize(
    ("plan", "chosen", "reason"),
    [
        (Plan(), None, ""),
        (Plan(processes=2), DDP, "2 processes; a process that keeps the others waiting for 10 minutes"),
        (Plan("ddp", 2), DDP, "set by the user; "),
        (Plan("ddp"), DDP, "set by the user; "),
        (Plan("fsdp2", 8, "cuda", "bf16-mixed", "nf4"), FSDP2, "set by the user; "),
        (Plan("fsdp2", 2, lora_variant="dora"), FSDP2, ""),
        (Plan("DDPStrategy", 2), None, ""),
        (Plan("ddp_find_unused_parameters_true", 2), None, ""),
        (Plan("auto", 1, optimizer="orpo_lightning.galore.LayerwiseGaLoreAdamW"), None, ""),
        (Plan("deepspeed_stage_2", 8, "cuda", has_deepspeed=True, saves=False), None, ""),
    ],
)
def test_a_strategy_is_chosen_with_its_reason(plan: Plan, chosen: str | None, reason: str) -> None:
    choice = choose_strategy(plan)
    assert (None if choice is None else choice.value) == chosen
    assert choice is None or reason in choice.reason


@pytest.mark.parametrize(
    ("plan", "found", "works"),
    [
        ({"strategy": "fsdp"}, "fsdp is FSDP1", "use fsdp2"),
        ({"strategy": "FSDPStrategy"}, "fsdp is FSDP1", "use fsdp2"),
        ({"strategy": "ModelParallelStrategy"}, "ModelParallelStrategy", "use fsdp2"),
        ({"strategy": "dp"}, "dp is no longer there", "use ddp"),
        ({"strategy": "ddp_spawn"}, "ddp_spawn", "use ddp"),
        ({"strategy": "ddp_notebook_find_unused_parameters_true"}, "ddp_notebook", "use ddp"),
        ({"optimizer": "orpo_lightning.galore.LayerwiseGaLoreAdamW"}, "found 2", "GaLoreAdamW with ddp"),
        ({"strategy": "fsdp2", "precision": "16-mixed"}, "found 16-mixed", "ddp"),
        ({"strategy": "fsdp2", "quantization": "int8"}, "int8", "nf4"),
        ({"strategy": "fsdp2", "lora_init": "pissa"}, "pissa", "ddp"),
        ({"strategy": "fsdp2", "quantization": "nf4", "lora_variant": "dora"}, "dora", "ddp"),
        (
            {"strategy": "fsdp2", "optimizer": "bitsandbytes.optim.PagedAdamW8bit"},
            "8bit",
            "torch.optim.AdamW",
        ),
        ({"strategy": "fsdp2", "optimizer": "orpo_lightning.galore.GaLoreAdamW"}, "GaLore", "use ddp"),
        ({"strategy": "deepspeed"}, "not installed", "fsdp2"),
        ({"strategy": "DeepSpeedStrategy", "has_deepspeed": True}, "found cpu", "fsdp2 or ddp"),
        (
            {"strategy": "deepspeed_stage_3", "has_deepspeed": True, "device": "cuda", "stage": 3},
            "stage 3",
            "use fsdp2",
        ),
        (
            {"strategy": "deepspeed", "has_deepspeed": True, "device": "cuda"},
            "checkpoints of its own",
            "fsdp2",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_does(plan: dict[str, Any], found: str, works: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose_strategy(Plan(**{"processes": 2, **plan}))
    assert found in str(refused.value)
    assert works in str(refused.value)


def test_the_timeout_leaves_room_for_what_one_process_does_alone() -> None:
    assert TIMEOUT.total_seconds() == 600
