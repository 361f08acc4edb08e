"""Which layers a run recomputes in its backward pass: as set, or as few as memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import causal_model, enable_checkpointing, knows_offload
from orpo_lightning.planning import weights
from orpo_lightning.planning.base import Batch, Model, Optimizer, Training, fullest
from orpo_lightning.planning.checkpointing import Choice, choose_checkpointing
from orpo_lightning.planning.peak import CONTEXT_BYTES
from orpo_lightning.planning.settings import training_of
from orpo_lightning.planning.shapes import read_model
from orpo_lightning.sharding import is_sharded, recomputable

# Of the device, left free: what the plan may be wrong by, and what a validation or a checkpoint takes.
MARGIN = 0.1


def choose(trainer: Any, module: Any, layout: str) -> Choice:
    """Return which layers are recomputed by `model.gradient_checkpointing`, and why.

    Args:
        trainer: the module's, None where it has none.
        module: a `PreferenceModule` with its model.
        layout: of the batches to come.
    """
    asked, layers = module.hparams["gradient_checkpointing"], max(len(recomputable(module.model)), 1)
    if asked != "auto":
        recomputed = layers if asked else 0
        return Choice(recomputed, layers, True, "set by the user", offloaded=asked == "offload")
    datamodule: Any = getattr(trainer, "datamodule", None)
    data = dict(getattr(datamodule, "hparams", {}))
    if not {"batch_size", "max_length"} <= set(data):
        return Choice(layers, layers, True, "no data module tells how large batches can be")
    if is_sharded(module.model):
        return Choice(layers, layers, True, "there is no plan for weights that are shared out over processes")
    budget = memory_for_training(module)
    if budget is None:
        return Choice(layers, layers, True, f"the free memory of {module.device.type.upper()} is not known")
    try:
        model = read_shape(module)
    except UsageError as error:
        return Choice(layers, layers, True, f"there is no plan for this model: {error}")
    training = planned_training(trainer, module, model)
    if "tokens_per_batch" in data:  # auto is a number by now
        data["tokens_per_batch"] = datamodule.tokens_per_batch
    batch = largest_batch(data, layout, trainer.accumulate_grad_batches)
    if trainer.world_size > 1:  # DDP's own copy of all gradients
        budget -= weights.gradient_bytes(model, training)
    choice = choose_checkpointing(model, training, batch, budget)
    if choice.offloaded and not knows_offload(causal_model(module.model)):
        reason = f"{choice.reason}; this transformers has no offload"
        choice = choice._replace(offloaded=False, fits=False, reason=reason)
    if choice.recomputed and layers != choice.layers:
        reason = f"{choice.reason}; this architecture recomputes all layers or none"
        return choice._replace(recomputed=layers, layers=layers, reason=reason)
    return choice


def largest_batch(data: Mapping[str, Any], layout: str, accumulate: int) -> Batch:
    """Return the largest micro-batch that a data module's arguments allow: as many of the longest pairs."""
    pairs, budget = data["batch_size"], data.get("tokens_per_batch")
    return fullest(layout, pairs, data["max_length"], budget=budget, most=pairs * accumulate)


def apply(model: Any, choice: Choice) -> None:
    """Let the first layers be recomputed in the backward pass, as many as were chosen, and no others."""
    causal = causal_model(model)
    if choice.recomputed:
        enable_checkpointing(causal, offload=choice.offloaded)
    else:
        causal.gradient_checkpointing_disable()
    for number, layer in enumerate(recomputable(causal)):
        layer.gradient_checkpointing = choice.is_recomputed(number)


def rows(choice: Choice) -> list[tuple[str, str]]:
    """Return the row of a run's header."""
    some = f"the first {choice.recomputed} of {choice.layers} layers"
    count = {0: "no layer", choice.layers: "all layers"}.get(choice.recomputed, some)
    waiting = ", what they start from waits in RAM" if choice.offloaded else ""
    return [("recomputed", f"{count}{waiting} ({choice.reason})")]


def read_shape(module: Any) -> Model:
    """Return the shape of a module's model, with the LoRA it has, or could have."""
    settings = module.hparams
    targets = settings["lora_targets"] if settings["lora_r"] else "all-linear"
    return read_model(causal_model(module.model).config, targets)


def planned_training(trainer: Any, module: Any, model: Model) -> Training:
    """Return how a module is trained, as far as memory goes; its layers recomputed as they are set now."""
    settings = module.hparams
    # While the optimizers are being configured, the Trainer has none yet.
    optimizers = trainer.optimizers or [one for one in [getattr(module, "optimizer_made", None)] if one]
    training = training_of(
        precision=trainer.precision,
        quantization=settings["quantization"],
        dtype=settings["dtype"],
        lora_r=settings["lora_r"],
        lora_dropout=settings["lora_dropout"],
        lora_variant=settings["lora_variant"],
        trained_rows=len(settings["trainable_tokens"] or []),
        optimizer=_facts(optimizers[0]) if optimizers else None,
        accumulate=trainer.accumulate_grad_batches,
        attention=module.attention_choice.value,
        device=module.device.type,
    )
    flags = [layer.gradient_checkpointing for layer in recomputable(module.model)]
    all_or_none = len(model.layers) if settings["gradient_checkpointing"] else 0
    return training._replace(recomputed=sum(flags) if flags else all_or_none, offloaded=_is_offloaded(module))


def _is_offloaded(module: Any) -> bool:
    """Tell whether recomputed layers start from RAM: as set or, once auto has chosen, as chosen."""
    chosen: Choice | None = getattr(module, "_recomputation", None)
    return chosen.offloaded if chosen else module.hparams["gradient_checkpointing"] == "offload"


def _facts(optimizer: Any) -> Optimizer:
    return Optimizer(
        type(optimizer).__name__,
        rank=next((group["rank"] for group in optimizer.param_groups if "rank" in group), 0),
        momentum=bool(optimizer.defaults.get("momentum")),
    )


def memory_for_training(module: Any) -> int | None:
    """Return the bytes that a plan may take, its margin left out: what is free and what the model holds.

    None where that cannot be known.
    """
    device = module.device
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) + CONTEXT_BYTES - MARGIN * total)
    if device.type != "cpu" or (available := available_ram()) is None:
        return None
    held = sum(tensor.numel() * tensor.element_size() for tensor in module.model.parameters())
    return int((1 - MARGIN) * (available + held))


def available_ram() -> int | None:
    """Return the bytes of RAM that this process can still have, within its container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return min(found, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit
        return found
