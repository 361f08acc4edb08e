"""The policy of a run: the base model that its settings name, with the adapter they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from orpo_lightning import hardware, modeling, sharding
from orpo_lightning.errors import UsageError
from orpo_lightning.initialization import apply_loftq, keep_initial_adapter
from orpo_lightning.planning.checkpointing import can_offload


class Policy(NamedTuple):
    """A model in training mode, and what was decided on the way."""

    model: Any
    attention: hardware.Choice
    initial_adapter: Any
    """PiSSA's adapter as it was made; None with any other initialisation."""


def build(
    settings: Mapping[str, Any], *, device: torch.device, precision: str, mesh: Any, seed: int
) -> Policy:
    """Load the base, quantise it, add LoRA, share it out.

    Args:
        settings: arguments of PreferenceModule.
        device: of this process.
        precision: of the Trainer.
        mesh: the DeviceMesh that a ModelParallelStrategy made; None keeps the model whole.
        seed: of the adapter's random weights.

    Raises:
        UsageError: a setting does not fit this model.
        SurroundingsError: the base cannot be loaded.
    """
    dtype = weights_dtype(settings, precision)
    where = {key: settings[key] for key in ("revision", "trust_remote_code")}
    attention = _attention(settings, where, device, precision)
    base = modeling.load_base(
        settings["base_model"],
        quantization=settings["quantization"],
        dtype=dtype,
        attention=attention.value,
        **_place(settings, dtype, device, mesh),
        **where,
    )
    modeling.disable_dropout(base)
    if settings["gradient_checkpointing"]:  # auto: all, until the run is known
        modeling.enable_checkpointing(base, offload=_offloads(settings, device))
    model: Any = _add_lora(base, settings, dtype, seed) if settings["lora_r"] else base
    initial_adapter = keep_initial_adapter(model) if settings["lora_init"] == "pissa" else None
    # from_pretrained returns eval mode, Lightning keeps modes, and in eval mode nothing is recomputed.
    model.train()
    if mesh is not None:
        sharding.shard(model, mesh["data_parallel"], device)
    return Policy(model, attention, initial_adapter)


def _offloads(settings: Mapping[str, Any], device: torch.device) -> bool:
    """Tell whether recomputed layers start from the host's memory, as set; auto decides later."""
    if settings["gradient_checkpointing"] != "offload":
        return False
    if not can_offload(device.type):
        raise UsageError(
            "model.gradient_checkpointing: offload moves from a GPU's memory to the host's, found "
            f"{device.type}, which has no other; set true, auto or false"
        )
    return True


def weights_dtype(settings: Mapping[str, Any], precision: str) -> torch.dtype:
    """Return the type of the base's weights."""
    if settings["dtype"] != "auto":
        return getattr(torch, settings["dtype"])
    # Weights that are trained themselves stay float32 under autocast: half precision loses small updates.
    return hardware.compute_dtype(precision) if settings["lora_r"] else torch.float32


def _attention(
    settings: Mapping[str, Any], where: dict[str, Any], device: torch.device, precision: str
) -> hardware.Choice:
    config = modeling.load_config(settings["base_model"], **where)
    if settings["attention"] != "auto":
        return hardware.Choice(settings["attention"], "set by the user")
    found = hardware.detect_device("cuda" if device.type == "cuda" else device.type)
    return modeling.supported_attention(config, hardware.choose_attention(found, precision))


def _place(
    settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device, mesh: Any
) -> dict[str, Any]:
    """Return where the base is loaded to: before it is shared out, it need not fit on one device."""
    is_sharded, is_quantized = mesh is not None, settings["quantization"] != "none"
    to = torch.device("cpu") if is_sharded and not is_quantized else device
    return {"device": to, "storage": dtype if is_sharded else torch.uint8}


def _add_lora(base: Any, settings: Mapping[str, Any], dtype: torch.dtype, seed: int) -> Any:
    model = modeling.add_lora(
        base,
        r=settings["lora_r"],
        alpha=settings["lora_alpha"],
        dropout=settings["lora_dropout"],
        targets=settings["lora_targets"],
        variant=settings["lora_variant"],
        init=settings["lora_init"],
        trainable_token_ids=_trainable_token_ids(settings),
        seed=seed,
        revision=settings["revision"],
    )
    if settings["lora_init"] == "loftq":
        where = {key: settings[key] for key in ("base_model", "revision", "trust_remote_code")}
        apply_loftq(model, modeling.load_base(**where, dtype=dtype))
    return model


def _trainable_token_ids(settings: Mapping[str, Any]) -> list[int]:
    if not settings["trainable_tokens"]:
        return []
    from orpo_lightning.data.tokenizer import load_tokenizer

    where = {key: settings[key] for key in ("revision", "trust_remote_code")}
    vocabulary = load_tokenizer(settings["base_model"], **where).get_vocab()
    for token in settings["trainable_tokens"]:
        if token not in vocabulary:
            raise UsageError(f"model.trainable_tokens: {token!r} is no single token of this tokenizer")
    return [vocabulary[token] for token in settings["trainable_tokens"]]
