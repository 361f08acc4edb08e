"""Weights shared out over the processes of a run (FSDP2): decoder layer by layer, then what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.modeling import causal_model

T = TypeVar("T")
_RUN = "_run_whole"


def shard(model: Any, mesh: Any, device: torch.device) -> None:
    """Share out all weights of a transformers or PEFT model over a mesh, in place.

    A layer's weights are whole while it computes, forward and backward, and only then. Those outside the
    layers (embedding, last norm, head) are whole while the model itself, or `run_whole`, runs.

    Args:
        model: with its adapter, on the device or, where it does not fit there, on the CPU.
        mesh: the one-dimensional DeviceMesh of all processes.
        device: this process's.

    Raises:
        UsageError: the architecture names no layers.
        SurroundingsError: torch is too old.
    """
    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise SurroundingsError(f"fsdp2 needs torch 2.6 or newer, found {torch.__version__}") from error
    causal = causal_model(model)
    layers = recomputable(causal)
    if not layers:
        raise UsageError(f"fsdp2: {type(causal).__name__} does not name its layers; use trainer.strategy ddp")
    _keep_quantization(causal)
    # Children come after their parents in the list, and must be shared out before them.
    for layer in reversed(layers):
        fully_shard(layer.to(device), mesh=mesh)
    # Unlike FSDP2's default for the outermost: else the head would stay whole from the forward pass on, and
    # after a validation every weight outside the layers would be an ordinary one to whoever looks.
    fully_shard(causal.to(device), mesh=mesh, reshard_after_forward=True)
    setattr(causal, _RUN, lambda function: function())
    register_fsdp_forward_method(causal, _RUN)
    check_all_sharded(model)


def recomputable(model: nn.Module) -> list[Any]:
    """Return the layers that can be shared out, or recomputed, one by one, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _keep_quantization(model: nn.Module) -> None:
    """Let each 4-bit layer hold the scales of its weight, which a shared-out weight no longer can."""
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            module.quant_state = state


def check_all_sharded(model: nn.Module) -> None:
    """Stop where a trained weight is not shared out: nothing would add up its gradients over the processes.

    Raises:
        UsageError: naming it.
    """
    left = [name for name, p in model.named_parameters() if p.requires_grad and not is_sharded(p)]
    if left:
        raise UsageError(
            f"fsdp2: {len(left)} trained weights are not shared out, first {left[0]}, so processes would "
            "drift apart: shard them in configure_model, or use trainer.strategy ddp"
        )


def is_sharded(what: Tensor | nn.Module) -> bool:
    """Tell whether a tensor is a part of a shared-out one, or a model has such."""
    if isinstance(what, nn.Module):
        return any(is_sharded(parameter) for parameter in what.parameters())
    return hasattr(what, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor as a whole: a shared-out one is gathered, so all processes must call together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def run_whole(model: Any, function: Callable[[], T]) -> T:
    """Run what calls parts of a transformers model by themselves; weights outside the layers are whole."""
    run = getattr(model, _RUN, None)
    return function() if run is None else run(function)


def gradients(loss: Tensor, weights: Sequence[Tensor], model: nn.Module) -> Iterable[Tensor | None]:
    """Return the gradients of some weights; of a shared-out model, those of all are computed and let go of.

    Args:
        loss: (), the same on all processes.
        weights: parameters of the model.
        model: without gradients of its own yet.
    """
    if not is_sharded(model):
        return torch.autograd.grad(loss, weights, allow_unused=True)
    loss.backward()
    found = [None if weight.grad is None else whole(weight.grad) for weight in weights]
    for parameter in model.parameters():
        parameter.grad = None
    return found


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights by name on the CPU, each gathered by itself; all processes call together."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: whole(parameter.detach()).cpu() for name, parameter in named}
