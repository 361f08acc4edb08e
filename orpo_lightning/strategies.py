"""How a run is spread over several devices, and what cannot work together there; pure."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from orpo_lightning.errors import UsageError
from orpo_lightning.hardware import Choice

TIMEOUT = timedelta(minutes=10)
"""How long a process that is alive may keep the others waiting. One that is not is found by its heartbeat."""
FSDP2 = "orpo_lightning.sharded_strategy.FSDP2Strategy"
DDP = "lightning.pytorch.strategies.DDPStrategy"
_WHY_TIMEOUT = f"a process that keeps the others waiting for {TIMEOUT.seconds // 60} minutes ends the run"
_FSDP1 = ("fsdp", "fsdp_cpu_offload", "FSDPStrategy")
_OWN_PROCESSES = ("ddp_spawn", "ddp_fork", "ddp_notebook")


class Plan(NamedTuple):
    """What decides whether a strategy can work.

    Attributes:
        strategy: trainer.strategy, a name or the last part of a class's.
        processes: of all nodes.
        device: "cuda", "mps" or "cpu".
        precision: trainer.precision.
        quantization: of the frozen base.
        lora_r: 0 where all weights are trained.
        lora_variant: lora, rslora or dora.
        lora_init: how LoRA starts.
        optimizer: class path.
        has_deepspeed: whether the package is installed.
        stage: ZeRO's, of a strategy that has it.
        saves: whether checkpoints are written.
    """

    strategy: str = "auto"
    processes: int = 1
    device: str = "cpu"
    precision: str = "32-true"
    quantization: str = "none"
    lora_r: int = 16
    lora_variant: str = "lora"
    lora_init: str = "default"
    optimizer: str = "torch.optim.AdamW"
    has_deepspeed: bool = False
    stage: int = 2
    saves: bool = True


def choose_strategy(plan: Plan) -> Choice | None:
    """Return the class path to use, with its reason; None leaves the strategy as it is.

    Raises:
        UsageError: the strategy cannot work, or not with the rest; names what does.
    """
    if reason := _refusal(plan):
        raise UsageError(reason)
    if plan.strategy == "auto" and plan.processes > 1:
        return Choice(DDP, f"{plan.processes} processes; {_WHY_TIMEOUT}")
    if plan.strategy == "ddp":
        return Choice(DDP, f"set by the user; {_WHY_TIMEOUT}")
    if plan.strategy == "fsdp2":
        return Choice(FSDP2, f"set by the user; {_WHY_TIMEOUT}")
    return None


def _refusal(plan: Plan) -> str | None:
    name = plan.strategy
    if name in _FSDP1:
        return "trainer.strategy fsdp is FSDP1, which cannot hold frozen and trained weights apart: use fsdp2"
    if name == "ModelParallelStrategy":
        return "trainer.strategy ModelParallelStrategy saves folders that nothing here resumes: use fsdp2"
    if name in ("dp", "ddp2", "horovod"):
        return f"trainer.strategy {name} is no longer there: use ddp"
    if name.startswith(_OWN_PROCESSES):
        return f"trainer.strategy {name} shares this process's signals and lock with others: use ddp"
    if plan.processes > 1 and plan.optimizer.endswith("LayerwiseGaLoreAdamW"):
        return (
            f"model.optimizer LayerwiseGaLoreAdamW updates within the backward pass of one device, found "
            f"{plan.processes}: use orpo_lightning.galore.GaLoreAdamW with ddp, or trainer.devices 1"
        )
    if name in ("fsdp2", "FSDP2Strategy"):
        return _refusal_fsdp2(plan)
    return _refusal_deepspeed(plan) if name.lower().startswith("deepspeed") else None


def _refusal_fsdp2(plan: Plan) -> str | None:
    if plan.precision not in ("32-true", "bf16-mixed"):
        return f"trainer.strategy fsdp2 works in bf16-mixed or 32-true, found {plan.precision}: or use ddp"
    if plan.quantization == "int8":
        return "trainer.strategy fsdp2 cannot share out int8 weights: use quantization nf4 or none, or ddp"
    if plan.lora_init == "pissa":
        return "trainer.strategy fsdp2 cannot export model.lora_init pissa: use default, or ddp"
    if plan.lora_variant == "dora" and plan.quantization != "none":
        return "trainer.strategy fsdp2 cannot use dora on quantised weights: use lora_variant lora, or ddp"
    if plan.optimizer.startswith("bitsandbytes."):
        return (
            f"trainer.strategy fsdp2 shares out the optimizer's state, which {plan.optimizer} cannot: use "
            "torch.optim.AdamW (whose state is then shared out too), or ddp"
        )
    if "galore" in plan.optimizer.lower():
        return "trainer.strategy fsdp2 shares out each gradient, GaLore needs it whole: use ddp"
    return None


def _refusal_deepspeed(plan: Plan) -> str | None:
    if not plan.has_deepspeed:
        return (
            "trainer.strategy deepspeed needs the package deepspeed, not installed here "
            "(pip install 'orpo-lightning[deepspeed]'): or use fsdp2"
        )
    if plan.device != "cuda":
        return f"trainer.strategy deepspeed needs CUDA GPUs, found {plan.device}: use fsdp2 or ddp"
    if plan.stage == 3:
        what = "4-bit weights" if plan.quantization != "none" else "weights as they are loaded"
        return f"trainer.strategy deepspeed with stage 3 cannot share out {what}: use fsdp2, or stage 2"
    if plan.saves:
        return (
            "trainer.strategy deepspeed writes checkpoints of its own that nothing here checks or resumes: "
            "set trainer.enable_checkpointing false (the adapter is exported all the same), or use fsdp2"
        )
    return None
