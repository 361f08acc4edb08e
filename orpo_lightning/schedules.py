"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["linear", "cosine", "constant", "inverse_sqrt"]


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Return the steps of warm-up: a whole number is steps, a share below 1 is of all steps, rounded up.

    Raises:
        ValueError: `warmup` is negative, or a fraction above 1.
    """
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(f"model.warmup: expected steps (0, 1, 2 …) or a share below 1, found {warmup}")
    return -int(-warmup * total_steps // 1) if warmup < 1 else int(warmup)


def make_schedule(optimizer: Optimizer, schedule: Schedule, warmup: float, total_steps: int) -> LambdaLR:
    """Return transformers' scheduler: linear warm-up from 0, then `schedule` over the remaining steps."""
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    steps = warmup_steps(warmup, total_steps)
    if schedule == "inverse_sqrt":
        steps = max(steps, 1)  # its decay is measured in warm-up lengths
    return get_scheduler(name, optimizer, num_warmup_steps=steps, num_training_steps=total_steps)


def fuse(optimizer: Optimizer, *, scales_loss: bool) -> None:
    """Let torch's Adam and AdamW make each update in one pass over memory, where the user left that open.

    On a CPU a step of LoRA's many small weights takes a tenth of the time; the numbers are equal to rounding.

    Args:
        optimizer: of any kind; others stay as they are.
        scales_loss: whether a scaler multiplies the loss (16-mixed): a fused optimizer would undo that by
            itself, and Lightning refuses to clip such gradients.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or scales_loss:
        return
    if all(group["fused"] is None and group["foreach"] is None for group in optimizer.param_groups):
        for group in [optimizer.defaults, *optimizer.param_groups]:
            group["fused"] = True


def trained(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return all parameters of an optimizer: those that are trained, without a walk through all modules."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Return the norm () of all gradients of the step under way, of all shards where there are some."""
    freed = getattr(optimizer, "grad_norm", None)  # of one that frees each gradient at once
    if freed is not None:
        return freed()
    gradients = [parameter.grad for parameter in trained(optimizer) if parameter.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def parameter_groups(model: nn.Module, named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Split trainable parameters into named groups that an optimizer can treat differently; none is empty.

    `matrices` are the 2-D weights of linear layers inside the blocks (what GaLore projects), `embeddings`
    those of the vocabulary (embedding, head), `vectors` everything else (norms, biases, DoRA magnitudes),
    never decayed.
    """
    vocabulary: set[int] = set()
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        layer = getattr(model, getter, lambda: None)()
        vocabulary |= {id(parameter) for parameter in layer.parameters()} if layer is not None else set()
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for _, parameter in named:
        kind = (
            "embeddings" if id(parameter) in vocabulary else "matrices" if parameter.ndim == 2 else "vectors"
        )
        groups[kind].append(parameter)
    return [
        {"params": parameters, "name": name, **({"weight_decay": 0.0} if name == "vectors" else {})}
        for name, parameters in groups.items()
        if parameters
    ]


_OF_GROUPS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return of each parameter group what `keep_settings` can give back after a checkpoint was loaded."""
    return [{key: group[key] for key in _OF_GROUPS if key in group} for group in optimizer.param_groups]


def keep_settings(optimizer: Optimizer, schedule: Any, wanted: list[dict[str, Any]]) -> list[str]:
    """Let this run's settings win over those a checkpoint brought along; return in words what they replace.

    Args:
        optimizer: with the checkpoint's state.
        schedule: the LambdaLR of its learning rate, with the checkpoint's state.
        wanted: `settings_of` the optimizer before that.
    """
    changes: dict[str, None] = {}
    for number, (group, settings) in enumerate(zip(optimizer.param_groups, wanted, strict=True)):
        for key, value in settings.items():
            before = group.get(key)
            if (tuple(before) if isinstance(before, list) else before) == value:
                continue
            group[key] = value
            changes[f"{'lr' if key == 'initial_lr' else key} {before} became {value}"] = None
            if key == "initial_lr":
                schedule.base_lrs[number] = value
                group["lr"] = value * schedule.lr_lambdas[number](schedule.last_epoch)
    return list(changes)
