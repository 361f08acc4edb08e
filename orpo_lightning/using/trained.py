"""What was trained, wherever it is: a run's folder, an adapter's, a whole model's, or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orpo_lightning import hardware, modeling
from orpo_lightning.errors import UsageError
from orpo_lightning.modeling import Quantization
from orpo_lightning.run_settings import settings_of
from orpo_lightning.using.adapters import add_adapter
from orpo_lightning.using.model_files import (
    ADAPTER_CONFIG,
    TRAINING,
    adapter_config,
    file_of,
    json_of,
    mark_of,
)


class Trained(NamedTuple):
    """Where the weights of a model are, and how they are to be loaded."""

    name: str
    """As it was given."""
    base: str
    """Hub id or folder of the base; of a whole model, its own."""
    adapter: str | None = None
    """Hub id or folder of the adapter; None for a whole model."""
    revision: str | None = None
    """Of the base, where that is a hub id."""
    quantization: Quantization = "none"
    reason: str = ""
    """Why that quantization."""
    trust_remote_code: bool = False
    lora_init: str = "default"
    """How the adapter began: one of LoftQ is right on the nf4 base alone."""
    run: Path | None = None
    """The folder of the run that trained it, where it is at hand."""
    config: Mapping[str, Any] = {}
    """The run's config.yaml."""

    @property
    def weights(self) -> str:
        """Where the trained weights are, with the tokenizer beside them."""
        return self.adapter or self.base


class Loaded(NamedTuple):
    """A model in eval mode with its tokenizer."""

    model: Any
    """A PeftModel where there is an adapter: `model.disable_adapter()` leaves the base."""
    tokenizer: Any
    rows: dict[str, str]
    """What was decided on the way, each with its reason, for the terminal."""


def find(
    name: str,
    *,
    base: str | None = None,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
) -> Trained:
    """Return what a name stands for; of the weights nothing is read.

    Args:
        name: a run's folder, an adapter's (RUN/adapter-best, say), a model's, or the hub id of either.
        base: instead of the base that the adapter names.
        quantization: of the base; None takes the run's, of an adapter without a run "none".
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UsageError: it is nothing of these.
        SurroundingsError: the hub cannot be reached, or has nothing of this name.
    """
    folder = Path(name).expanduser()
    asked = _Asked(name, base, quantization, trust_remote_code)
    if not folder.is_dir():
        if folder.exists() or not _may_be_hub_id(name):
            found = "a file" if folder.exists() else "no such folder"
            raise UsageError(f"{name}: expected {_EXPECTED}, or a hub id like owner/name; found {found}")
    elif (folder / "config.yaml").is_file():
        return _of_run(asked, folder, folder / "adapter")
    elif (folder.parent / "config.yaml").is_file() and folder.name.startswith("adapter"):
        return _of_run(asked, folder.parent, folder)
    elif not any((folder / file).is_file() for file in (ADAPTER_CONFIG, "config.json")):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise UsageError(f"{name}: expected {_EXPECTED}, found {found}")
    settings = adapter_config(name)
    if settings is None:
        chosen, reason = quantization or "none", _reason(quantization, "as it is stored")
        return Trained(name, name, None, None, chosen, reason, trust_remote_code)
    facts = json_of(name, TRAINING) or {}
    named = base or _located(_base_of(settings, name), folder if folder.is_dir() else None, name)
    revision = None if base else settings.get("revision")
    return _adapted(asked, name, named, revision, facts.get("quantization"), facts.get("lora_init"))


class _Asked(NamedTuple):
    """What the user said."""

    name: str
    base: str | None
    quantization: Quantization | None
    trust_remote_code: bool


_EXPECTED = f"the folder of a run (config.yaml), of an adapter ({ADAPTER_CONFIG}) or of a model (config.json)"


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~"))


def _reason(asked: Any, otherwise: str) -> str:
    return otherwise if asked is None else "set by the user"


def _of_run(asked: _Asked, run: Path, weights: Path) -> Trained:
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}
    model = settings_of(config, "model")
    if not weights.is_dir():
        raise UsageError(f"{asked.name}: {weights} is not there: the run has not ended yet, or saved nothing")
    if "base_model" not in model:
        raise UsageError(
            f"{asked.name}: {run / 'config.yaml'} names no model.base_model; name {weights} itself"
        )
    trust = asked.trust_remote_code or bool(model.get("trust_remote_code"))
    of_run: dict[str, Any] = {"run": run.resolve(), "config": config}
    if not (weights / ADAPTER_CONFIG).is_file():  # all weights were trained
        chosen, reason = asked.quantization or "none", _reason(asked.quantization, "as it was trained")
        return Trained(asked.name, str(weights), None, None, chosen, reason, trust, **of_run)
    revision = None if asked.base else model.get("revision")
    named = asked.base or _located(model["base_model"], run, asked.name)
    adapted = _adapted(
        asked, str(weights), named, revision, model.get("quantization"), model.get("lora_init")
    )
    return adapted._replace(trust_remote_code=trust, **of_run)


def _adapted(
    asked: _Asked,
    adapter: str,
    base: str,
    revision: str | None,
    trained_on: Quantization | None,
    lora_init: str | None,
) -> Trained:
    """Return an adapter, loaded on the quantisation it was trained on unless the user has another."""
    chosen = asked.quantization or trained_on or "none"
    unknown = "nothing says what it was trained on; --quantization nf4 takes a quarter"
    reason = _reason(asked.quantization, "as it was trained" if trained_on else unknown)
    if lora_init == "loftq" and chosen != "nf4":
        raise UsageError(f"{asked.name}: a LoftQ adapter is right on the nf4 base alone, found {chosen}")
    return Trained(
        asked.name,
        base,
        adapter,
        revision,
        chosen,
        reason,
        asked.trust_remote_code,
        lora_init or "default",
    )


def _located(base: str, folder: Path | None, name: str) -> str:
    """Return a base as it is named, or, for the path of a folder, where that folder is from here.

    A path was written down where the training was started: most often a folder above the run's.
    """
    path = Path(base).expanduser()
    if path.is_dir() or path.is_absolute() or folder is None:
        return _there(base, path, name)
    for above in folder.resolve().parents:
        if (above / path / "config.json").is_file():
            return str(above / path)
    return _there(base, path, name)


def _there(base: str, path: Path, name: str) -> str:
    if path.is_dir() or _may_be_hub_id(base):
        return base
    raise UsageError(
        f"{name}: its base {base} is no folder here: start where the training was started, or name the base "
        "with --base"
    )


def _base_of(settings: Mapping[str, Any], name: str) -> str:
    base = settings.get("base_model_name_or_path")
    if not base:
        raise UsageError(f"{name}: its {ADAPTER_CONFIG} names no base model; name one with --base")
    return str(base)


def load(trained: Trained, *, accelerator: str = "auto") -> Loaded:
    """Load base, adapter and tokenizer, for scoring and for generation.

    Raises:
        SurroundingsError: files are missing or cannot be fetched, or the device is not there.
        CheckpointError: the adapter is damaged, incomplete, or of another base.
        UsageError: it is no causal language model.
    """
    device = hardware.detect_device(accelerator)
    precision = hardware.choose_precision(device)
    dtype = hardware.compute_dtype(precision.value)
    where: dict[str, Any] = {"revision": trained.revision, "trust_remote_code": trained.trust_remote_code}
    config = modeling.load_config(trained.base, **where)
    attention = modeling.supported_attention(config, hardware.choose_attention(device, precision.value))
    model: Any = modeling.load_base(
        trained.base,
        **where,
        quantization=trained.quantization,
        dtype=dtype,
        attention=attention.value,
        device=torch.device(device.kind),
    )
    if trained.adapter is not None:
        model = add_adapter(model, trained.adapter)
    tokenizer = tokenizer_of(trained)
    rows = {
        "model": trained.base if trained.adapter is None else f"{trained.base} with {trained.adapter}",
        "quantization": f"{trained.quantization} ({trained.reason})",
        "precision": f"{str(dtype).removeprefix('torch.')} ({precision.reason})",
        "attention": f"{attention.value} ({attention.reason})",
    }
    return Loaded(model.eval(), tokenizer, rows)


def generation_settings(trained: Trained) -> Any:
    """Return the generation_config of a model, or of an adapter's base; an empty one where there is none."""
    from transformers import GenerationConfig

    where: dict[str, Any] = {} if trained.revision is None else {"revision": trained.revision}
    try:
        return GenerationConfig.from_pretrained(trained.base, **where)
    except OSError:
        return GenerationConfig()


def weights_mark(trained: Trained) -> list[Any]:
    """Return what tells these weights from others, without reading them, as JSON has it."""
    base = mark_of(trained.base, "config.json", trained.revision)
    own = [] if trained.adapter is None else mark_of(trained.adapter, ADAPTER_CONFIG)
    return [trained.base, trained.revision, trained.adapter, trained.quantization, base, own]


def tokenizer_of(trained: Trained) -> Any:
    """Return the tokenizer: the one saved with the adapter where it is there, else the base's.

    With the base's goes the chat template that the run replaced its own by.

    Raises:
        SurroundingsError: it cannot be fetched.
    """
    from orpo_lightning.data.tokenizer import load_tokenizer

    own = trained.adapter is None or file_of(trained.adapter, "tokenizer_config.json") is not None
    name, revision = (trained.weights, None) if own else (trained.base, trained.revision)
    template = None if own else settings_of(trained.config, "data").get("chat_template")
    return load_tokenizer(
        name, revision=revision, trust_remote_code=trained.trust_remote_code, chat_template=template
    )
