"""What `data.tokens_per_batch auto` is: as many tokens as the memory holds, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from orpo_lightning.batching.costs import LayoutTokens, flat_tokens, longest_and_distinct, tokens_alone
from orpo_lightning.errors import UsageError
from orpo_lightning.planning import weights
from orpo_lightning.planning.gpus import GIB
from orpo_lightning.planning.token_budget import largest_budget
from orpo_lightning.recomputation import memory_for_training, planned_training, read_shape
from orpo_lightning.sharding import is_sharded


class TokenBudget(NamedTuple):
    """Most tokens of a micro-batch, and why, in words for the header."""

    tokens: int
    reason: str


def choose_token_budget(
    trainer: Any, lengths: Tensor, *, layout_tokens: LayoutTokens, batch_size: int, saved: int | None = None
) -> TokenBudget:
    """Return the largest budget that fits on a GPU; elsewhere what `batch_size` of the longest pairs take.

    The pairs of a step, and so its gradient, do not depend on it. Every rank has the same one, and a run that
    goes on keeps that of its checkpoint: how much memory is free is not the same each time.

    Args:
        trainer: with its module, whose model is there; None where there is none.
        lengths: (n, 3) tokens of prompt, chosen and rejected of each pair.
        layout_tokens: how the layout counts them.
        batch_size: pairs of a micro-batch.
        saved: the checkpoint's.
    """
    alone = int(tokens_alone(lengths, layout_tokens).max()) if len(lengths) else 1
    safe = batch_size * alone
    module: Any = getattr(trainer, "lightning_module", None)
    why_not = _why_not_planned(module)
    if saved is not None:
        return TokenBudget(saved, "auto, as before the checkpoint")
    if why_not:
        return TokenBudget(safe, f"auto: what batch_size {batch_size} of the longest pairs take: {why_not}")
    try:
        model = read_shape(module)
    except UsageError as error:
        reason = f"there is no plan for this model: {error}"
        return TokenBudget(safe, f"auto: what batch_size {batch_size} of the longest pairs take: {reason}")
    training = planned_training(trainer, module, model)
    memory = memory_for_training(module) or 0
    if trainer.world_size > 1:  # DDP's own copy of all gradients
        memory -= weights.gradient_bytes(model, training)
    layout = "shared_prefix" if layout_tokens is flat_tokens else "padded"
    most = batch_size * trainer.accumulate_grad_batches
    longest = int(longest_and_distinct(lengths)[0].max())
    if module.hparams["gradient_checkpointing"] == "auto":
        # A recomputed layer costs time, which a larger micro-batch does not bring back.
        training = _without_recomputation(training, model, layout, longest, most, memory)
    tokens, planned = largest_budget(model, training, layout, longest=longest, most=most, memory=memory)
    tokens = _least_of_ranks(trainer, tokens)
    return TokenBudget(tokens, _words(tokens, planned, memory, whole=tokens >= most * alone))


def _why_not_planned(module: Any) -> str:
    """Return why memory does not decide; empty where it does."""
    if not {"gradient_checkpointing", "quantization"} <= set(getattr(module, "hparams", {})):
        return "of another module no plan is known"
    if module.device.type == "cpu":
        return "a CPU is no faster with larger ones"
    if module.device.type != "cuda":
        return f"the free memory of {module.device.type.upper()} is not known"
    if is_sharded(module.model):
        return "there is no plan for weights that are shared out over processes"
    return ""


def _without_recomputation(
    training: Any, model: Any, layout: str, longest: int, most: int, memory: int
) -> Any:
    """Return the training without recomputed layers where one of the longest pairs then still fits."""
    plain = training._replace(recomputed=0)
    _, planned = largest_budget(model, plain, layout, longest=longest, most=1, memory=memory)
    return plain if planned <= memory else training._replace(recomputed=len(model.layers))


def _least_of_ranks(trainer: Any, tokens: int) -> int:
    if trainer.world_size == 1:
        return tokens
    own = torch.tensor(float(tokens), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(own, reduce_op="min"))


def _words(tokens: int, planned: int, memory: int, *, whole: bool) -> str:
    have = f"{planned / GIB:.1f} of {memory / GIB:.1f} GiB are planned"
    if planned > memory:
        return f"auto: one pair of the longest, though {have}"
    return f"auto: a whole step, {have}" if whole else f"auto: the most that fits, {have}"
