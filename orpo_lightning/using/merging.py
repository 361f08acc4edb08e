"""An adapter's update added to the weights of its base: one model, without an adapter."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from orpo_lightning import modeling
from orpo_lightning.errors import CheckpointError, SurroundingsError, UsageError, first_line
from orpo_lightning.hardware import Choice
from orpo_lightning.using.adapters import add_adapter
from orpo_lightning.using.model_limits import writable
from orpo_lightning.using.trained import Trained

Onto = Literal["full", "dequantized"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_onto(trained: Trained, asked: Onto | None, stored_quantized: bool = False) -> Choice:
    """Return which weights of the base the update is added to.

    Args:
        trained: what is to be merged.
        asked: by the user.
        stored_quantized: the base has no full-precision weights.

    Raises:
        UsageError: there is no adapter, or it is not right on these weights.
    """
    assert asked is None or asked in get_args(Onto)
    if trained.adapter is None:
        raise UsageError(f"{trained.name}: is a whole model already: there is no adapter to merge")
    for reason in _only_on_dequantized(trained, stored_quantized):
        if asked == "full":
            raise UsageError(f"--onto full: {reason}; use --onto dequantized")
        return Choice("dequantized", reason)
    if asked == "dequantized":
        if trained.quantization != "nf4":
            raise UsageError(
                f"--onto dequantized: is for nf4, the adapter was trained on {trained.quantization} weights"
            )
        return Choice("dequantized", "set by the user: what the adapter was trained on, rounding apart")
    if trained.quantization == "none":
        return Choice("full", "what the adapter was trained on")
    other = "" if trained.quantization != "nf4" else "; --onto dequantized takes those"
    return Choice("full", f"better than the {trained.quantization} weights it was trained on{other}")


def _only_on_dequantized(trained: Trained, stored_quantized: bool) -> list[str]:
    if trained.lora_init == "loftq":
        return ["a LoftQ adapter makes up for the error of nf4: on other weights it is wrong"]
    return [f"{trained.base} is stored quantised"] if stored_quantized else []


def choose_dtype(config: Any, asked: str | None) -> Choice:
    """Return the type of the merged weights, one of DTYPES: as asked for, else the base's own."""
    if asked is not None:
        return Choice(asked, "set by the user")
    stored = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    return (
        Choice(stored, "as the base is stored") if stored in DTYPES else Choice("float32", "stored as none")
    )


def load_adapted(trained: Trained, onto: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the base, not quantised, with the adapter on it; its weights are in memory once.

    They are in the wider of the type asked for and the stored one, so that sums are rounded once.

    Raises:
        SurroundingsError: base or adapter cannot be loaded.
        CheckpointError: the adapter is damaged, incomplete, or of another base.
    """
    where: dict[str, Any] = {"revision": trained.revision, "trust_remote_code": trained.trust_remote_code}
    config = modeling.load_config(trained.base, **where)
    is_stored_quantized = getattr(config, "quantization_config", None) is not None
    wide = torch.promote_types(dtype, DTYPES[choose_dtype(config, None).value])
    base: Any = modeling.load_base(
        trained.base,
        **where,
        quantization="nf4" if onto == "dequantized" and not is_stored_quantized else "none",
        dtype=wide,
        attention=modeling.supported_attention(config, Choice("sdpa", "")).value,
        device=device,
    )
    if onto == "dequantized":
        base = base.dequantize(wide)
    adapted = add_adapter(base, str(trained.adapter)).eval()
    _part_tied_head(adapted)
    return adapted


def merge(adapted: Any, dtype: torch.dtype) -> Any:
    """Return the base with the update in its weights, of this type; `adapted` is used up.

    Raises:
        CheckpointError: a merged weight is not finite.
        UsageError: this kind of adapter cannot be merged.
    """
    try:
        model = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        if "NaNs detected" in str(error):
            raise CheckpointError(f"the adapter is broken: {first_line(error)}") from error
        raise UsageError(f"this adapter cannot be merged: {first_line(error)}") from error
    except AttributeError as error:  # of prompts and prefixes, which are no part of a weight
        raise UsageError(f"this adapter cannot be merged: {first_line(error)}") from error
    return model.to(dtype)


def _part_tied_head(adapted: Any) -> None:
    """Give a head that shares its weight with the embedding one of its own, where one of them has LoRA.

    The update is meant for one of the two; merged into what they share it would change the other.
    """
    base = adapted.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    layers = [getattr(layer, "base_layer", layer) for layer in (embedding, head)]
    has_lora = [
        bool(getattr(layer, "lora_A", None) or getattr(layer, "lora_embedding_A", None))
        for layer in (embedding, head)
    ]
    if head is None or not any(has_lora) or layers[0].weight is not layers[1].weight:
        return
    layers[1].weight = torch.nn.Parameter(layers[1].weight.detach().clone(), requires_grad=False)
    base.config.tie_word_embeddings = False


def save(model: Any, folder: Any, *, max_shard_size: str, stop_ids: set[int]) -> None:
    """Write a merged model as plain transformers reads it, with every token that ends an answer.

    Raises:
        SurroundingsError: it cannot be written.
    """
    model.generation_config = writable(model.generation_config, list(stop_ids))
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except ValueError as error:
        raise SurroundingsError(f"the merged model cannot be written: {first_line(error)}") from error
