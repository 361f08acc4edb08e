"""How a transformers model comes to use shared prefixes: an attention function of its own name.

The plan takes the way of the attention mask: the model asks for one, is given the plan, and hands it to each
layer. So it is also among what gradient checkpointing keeps for a layer's second run, and no architecture can
lose it. A call with any other mask (a padded batch, `generate`) goes on to the implementation that the model
had before, so the name can stay for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from orpo_lightning.batching.shared_prefix import KEYWORD, SharedPrefix
from orpo_lightning.hardware import Choice, Device
from orpo_lightning.shared_attention import packed, rows, slices
from orpo_lightning.shared_attention.base import Recipe, same_dtype
from orpo_lightning.shared_attention.choice import SHORT, Needs, choose_backend, find_backends

_PREFIX = "shared_prefix_"
_ATTEND: dict[str, Callable[..., Tensor]] = {
    "slices": slices.attend,
    "rows": rows.attend,
    "flash_attn_2": partial(packed.attend_packed, packed.flash_attention_2),
    "flash_attn_3": partial(packed.attend_packed, packed.flash_attention_3),
    "torch_varlen": partial(packed.attend_packed, packed.torch_varlen),
    "flex_attention": packed.attend_flex,
}
_plan: ContextVar[SharedPrefix | None] = ContextVar("shared_prefix", default=None)
_excluded: frozenset[str] = frozenset()
used: dict[str, str] = {}
"""Which backends have run, each with the reason it was chosen for."""


def install(model: nn.Module) -> None:
    """Let every attention layer of `model` take shared prefixes; without one nothing changes."""
    for config in _configs(model):
        before = config._attn_implementation
        if before is not None and not before.startswith(_PREFIX):
            name = _PREFIX + before
            AttentionInterface.register(name, partial(_attend_or_pass_on, before=before))
            AttentionMaskInterface.register(name, partial(_mask, before=before))
            _set(config, name)


def uninstall(model: nn.Module) -> None:
    """Give every layer of `model` the implementation back that it had before `install`."""
    for config in _configs(model):
        if (config._attn_implementation or "").startswith(_PREFIX):
            _set(config, config._attn_implementation.removeprefix(_PREFIX))


def _set(config: Any, name: str) -> None:
    # Behind the public property, which would set all configs below this one alike.
    config._attn_implementation_internal = name


def _configs(model: nn.Module) -> list[PretrainedConfig]:
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(one): one for one in found if isinstance(one, PretrainedConfig)}.values())


class _MaskByPlan:
    """Stands where a mask would. Into the plan itself torch.compile would look, and compile for each one."""

    def __init__(self, plan: SharedPrefix) -> None:
        self.plan = plan


@contextmanager
def attending_by(plan: SharedPrefix) -> Iterator[None]:
    """Give every mask that a model asks for in here as `plan`."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def _mask(*args: Any, before: str, **kwargs: Any) -> Any:
    if (plan := _plan.get()) is not None:
        return _MaskByPlan(plan)
    function = ALL_MASK_ATTENTION_FUNCTIONS.get(before)
    return None if function is None else function(*args, **kwargs)


def _attend_or_pass_on(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *,
    before: str,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The attention function, as transformers calls it: (1, heads, T, width) → (1, T, heads, width)."""
    # Among the keywords where someone called the model with all of `PairBatch.model_inputs` himself.
    if (by_name := kwargs.pop(KEYWORD, None)) is not None:
        attention_mask = _MaskByPlan(by_name)
    if isinstance(attention_mask, _MaskByPlan):
        return _attend(module, query, key, value, attention_mask, **kwargs), None
    return _pass_on(before, module, query, key, value, attention_mask, **kwargs)


def _pass_on(before: str, module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    names = vars(sys.modules[type(module).__module__])
    # Some architectures have a collection of their own, and each its own eager attention.
    functions = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    function = functions.get_interface(before, names.get("eager_attention_forward"))
    if "flash" not in before:
        return function(module, *args, **kwargs)
    # This one looks its own name up in the config.
    name = module.config._attn_implementation
    _set(module.config, before)
    try:
        return function(module, *args, **kwargs)
    finally:
        _set(module.config, name)


@torch.compiler.disable
def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: _MaskByPlan,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    if is_causal is False or position_bias is not None or key.shape[2] != query.shape[2]:
        name = type(module).__name__
        raise NotImplementedError(f"{name} asks for more than causal attention among the tokens at hand")
    query, key, value = same_dtype(query, key, value)
    plan = mask.plan
    window = sliding_window if sliding_window and sliding_window < plan.longest else None
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    recipe = Recipe(scale, window, softcap, s_aux, dropout)
    width = max(key.shape[-1], value.shape[-1])
    has_window, has_cap, has_sinks = (feature is not None for feature in (window, softcap, s_aux))
    needs = Needs(query.dtype, width, has_window, has_cap, has_sinks, dropout > 0, is_short(plan))
    backend = _backend(_device(query.device), needs)
    used[backend.value] = backend.reason
    return _ATTEND[backend.value](query, key, value, plan, recipe).contiguous()


def is_short(plan: SharedPrefix) -> bool:
    """Return whether the pairs of a batch are short, or what `plan.derived["short"]` says."""
    if "short" not in plan.derived:
        plan.derived["short"] = sum(map(sum, plan.lengths)) < SHORT * len(plan.lengths)
    return plan.derived["short"]


@lru_cache
def _device(device: torch.device) -> Device:
    if device.type != "cuda":
        return Device(device.type, device.type.upper())
    return Device("cuda", torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


@lru_cache
def _backend(device: Device, needs: Needs) -> Choice:
    return choose_backend(device, needs, find_backends(device.kind) - _excluded)


def excluded() -> frozenset[str]:
    """Return the backends that are done without."""
    return _excluded


def exclude(backends: Set[str]) -> None:
    """Do without exactly these backends from now on."""
    global _excluded
    _excluded = frozenset(backends)
    _backend.cache_clear()
