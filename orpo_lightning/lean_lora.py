"""LoRA's forward and backward pass with fewer trips over memory than PEFT's; equal to it but for rounding.

PEFT adds an update to a linear layer's output in separate steps (for 4-bit layers a copy, two thin products,
a scaling, a sum), each of which reads and writes a tensor as large as the output, and autograd adds up the
input's gradient in as many. Here the update is a part of the matrix products themselves. Parameters, names
and what is saved stay PEFT's: only the class of a layer changes, to one whose `forward` is leaner.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def make_lean(model: nn.Module) -> int:
    """Let the LoRA layers of a PEFT model take the lean path; return how many there are.

    Layers of other kinds (DoRA, embeddings, convolutions) stay as they are, and a lean one goes PEFT's way
    whenever more is asked of it than one adapter on top of its base.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) in _kinds()]
    layers = [layer for layer in layers if not layer.lora_variant and not any(layer.lora_bias.values())]
    for layer in layers:
        layer.__class__ = _kinds()[type(layer)]
    return len(layers)


@cache
def _kinds() -> dict[type, type]:
    """Return the lean class of every class of PEFT's that has one."""
    kinds: list[Any] = [getattr(lora, name, None) for name in ("Linear", "Linear4bit", "Linear8bitLt")]
    return {kind: type(f"Lean{kind.__name__}", (_Lean, kind), {}) for kind in kinds if kind is not None}


class _Lean(nn.Module):
    """Put in front of a LoRA layer's class."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        name = _only_adapter(layer)
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base, dropout = layer.base_layer, layer.lora_dropout[name]
        a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        if not torch.is_autocast_enabled(x.device.type):
            if not x.dtype == a.dtype == b.dtype:
                return super().forward(x)
            dtype = x.dtype
        else:
            dtype = torch.get_autocast_dtype(x.device.type)
        a, b, seen = a.to(dtype), b.to(dtype), dropout(x).to(dtype)
        if type(base) is nn.Linear and _is_frozen(base) and _is_off(dropout):
            bias = None if base.bias is None else base.bias.to(dtype)
            return _LinearWithUpdate.apply(seen, base.weight.to(dtype), bias, a, b, scale)
        return _Update.apply(base(x), seen, a, b, scale)


def _only_adapter(layer: Any) -> str | None:
    """Return the adapter that is to be added to the base; None where it is not exactly one."""
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return names[0] if len(names) == 1 else None


def _is_frozen(base: nn.Linear) -> bool:
    return not any(parameter.requires_grad for parameter in base.parameters())


def _is_off(dropout: nn.Module) -> bool:
    return isinstance(dropout, nn.Identity) or not dropout.training


class _LinearWithUpdate(torch.autograd.Function):
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ for a frozen W, all of one dtype."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        output = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        output.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        low_grad, a_grad, b_grad = _thin_grads(grad, rows, low, b, ctx.scale)
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ weight).addmm_(low_grad, a).view(ctx.shape)
        return x_grad, None, None, a_grad, b_grad, None


class _Update(torch.autograd.Function):
    """output + scale · (x Aᵀ) Bᵀ, for an output made elsewhere: by a quantised or a trained layer."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.t()
        ctx.save_for_backward(rows, low, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        if output.dtype != low.dtype:
            return output + (low @ b.t()).mul_(scale).view_as(output)
        return torch.addmm(output.reshape(-1, output.shape[-1]), low, b.t(), alpha=scale).view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        rows, low, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(low.dtype)
        low_grad, a_grad, b_grad = _thin_grads(grad, rows, low, b, ctx.scale)
        x_grad = (low_grad @ a).view(ctx.shape) if ctx.needs_input_grad[1] else None
        return grads[0], x_grad, a_grad, b_grad, None


def _thin_grads(
    grad: Tensor, rows: Tensor, low: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x Aᵀ, A and B."""
    low_grad = (grad @ b).mul_(scale)
    return low_grad, low_grad.t() @ rows, (grad.t() @ low).mul_(scale)
