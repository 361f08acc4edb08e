"""An adapter put on its base: as it was written, whole, and with a place for every weight."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning.errors import CheckpointError
from orpo_lightning.using.model_files import fetched
from orpo_lightning.using.sealed_folder import MANIFEST, check_seal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WEIGHTS = "adapter_model."
"""How the names of an adapter's files of weights begin."""


def add_adapter(model: Any, adapter: str) -> Any:
    """Return a base with an adapter from a folder or the hub.

    Raises:
        SurroundingsError: it cannot be fetched.
        CheckpointError: it is damaged, incomplete, or of another base.
    """
    check_weights(adapter)
    try:
        adapted, found = fetched(lambda: _loaded(model, adapter), adapter)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise CheckpointError(f"{adapter}: is not of this base: its weights have other shapes") from error
    except KeyError as error:
        # PEFT looks for rows of tokens, and for modules that were trained whole, without asking.
        if "." not in str(error):
            raise
        raise _lacks(adapter, [str(error.args[0])]) from error
    if found is not None and found.missing_keys:
        raise _lacks(adapter, found.missing_keys)
    if found is not None and found.unexpected_keys:
        raise CheckpointError(
            f"{adapter}: has {_counted(found.unexpected_keys)} that this base has no layer for: it was "
            "trained on another base, or its adapter_config.json is another adapter's"
        )
    return adapted


def check_weights(adapter: str) -> None:
    """Compare an adapter's weights with what was written down of them, where they lie in a sealed folder.

    What its user may have changed by hand since, such as its card or template, is left alone.

    Raises:
        CheckpointError: a file is missing, or another than was written.
    """
    folder = Path(adapter).expanduser()
    if (folder / MANIFEST).is_file():
        check_seal(folder, _WEIGHTS)


def check_on(config: PretrainedConfig, adapter: str, *, trust_remote_code: bool) -> None:
    """Put an adapter on a base that is built from its config, without its weights.

    Raises:
        UsageError: the architecture cannot be built.
        SurroundingsError: the adapter cannot be fetched.
        CheckpointError: it is damaged, incomplete, or of another base.
    """
    from orpo_lightning.planning.shapes import on_meta

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter")  # as is meant here
        add_adapter(on_meta(config, trust_remote_code), adapter)


def _loaded(model: Any, adapter: str) -> tuple[Any, Any]:
    """Return a base with an adapter, and which keys PEFT missed, and which it had no place for."""
    from peft import PeftConfig, PeftModel, PeftType

    config = PeftConfig.from_pretrained(adapter)
    # By itself PEFT would take the GPU, also for a base on the CPU, or without weights.
    device = "cpu" if model.device.type == "meta" else str(model.device)
    if model.device.type == "meta" and hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # PiSSA begins with the base's weights, and here are none
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of ours
        adapted = PeftModel.from_pretrained(model, adapter, config=config, torch_device=device)
    name = adapted.active_adapter
    if adapted.peft_config[name].peft_type != PeftType.LORA:  # others leave out what is shared, or made anew
        return adapted, None
    # It tells only whoever loads them once more; older names of layers are mapped as in the first loading.
    mapping = getattr(model, "_checkpoint_conversion_mapping", {})
    return adapted, adapted.load_adapter(adapter, name, key_mapping=mapping, torch_device=device)


def _lacks(adapter: str, names: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{adapter}: lacks {_counted(names)} that its adapter_config.json asks for on this base: it is not "
        "whole, or was trained on another base"
    )


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} weights (first {min(names)})"
