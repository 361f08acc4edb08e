"""What was trained, wherever it is: a run's folder, an adapter's, a whole model's, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orpo_lightning import hardware, modeling
from orpo_lightning.base_errors import explain_base, is_about_files
from orpo_lightning.errors import UsageError
from orpo_lightning.hub_access import with_retries
from orpo_lightning.modeling import Quantization

ADAPTER_CONFIG = "adapter_config.json"


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
    if folder.is_dir() and (folder / "config.yaml").is_file():
        return _of_run(name, folder, folder / "adapter", base, quantization, trust_remote_code)
    if folder.is_dir() and (folder.parent / "config.yaml").is_file() and folder.name.startswith("adapter"):
        return _of_run(name, folder.parent, folder, base, quantization, trust_remote_code)
    if folder.is_dir() and not any((folder / file).is_file() for file in (ADAPTER_CONFIG, "config.json")):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise UsageError(
            f"{name}: expected the folder of a run (config.yaml), of an adapter ({ADAPTER_CONFIG}) or of a "
            f"model (config.json), found {found}"
        )
    chosen = quantization or "none"
    reason = "set by the user" if quantization else "as stored; --quantization nf4 takes a quarter"
    settings = adapter_config(name)
    if settings is None:
        return Trained(name, name, None, None, chosen, reason, trust_remote_code)
    named = base or _base_of(settings, name)
    revision = None if base else settings.get("revision")
    return Trained(name, named, name, revision, chosen, reason, trust_remote_code)


def _of_run(
    name: str, run: Path, weights: Path, base: str | None, quantization: Quantization | None, trust: bool
) -> Trained:
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) or {}
    model = settings_of(config, "model")
    if not weights.is_dir():
        raise UsageError(f"{name}: {weights} is not there: the run has not ended yet, or saved nothing")
    if "base_model" not in model:
        raise UsageError(f"{name}: {run / 'config.yaml'} names no model.base_model; name {weights} itself")
    trust = trust or bool(model.get("trust_remote_code"))
    chosen = quantization or model.get("quantization", "none")
    reason = "set by the user" if quantization else "as it was trained"
    if not (weights / ADAPTER_CONFIG).is_file():  # all weights were trained
        return Trained(
            name, str(weights), None, None, quantization or "none", reason, trust, run.resolve(), config
        )
    if model.get("lora_init") == "loftq" and chosen != "nf4":
        raise UsageError(f"{name}: a LoftQ adapter is right on the nf4 base alone, found {chosen}")
    revision = None if base else model.get("revision")
    named = base or model["base_model"]
    return Trained(name, named, str(weights), revision, chosen, reason, trust, run.resolve(), config)


def settings_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the arguments of `model` or `data` in a config.yaml, whether it names a class or not."""
    values = config.get(part) or {}
    return dict(values.get("init_args", values))


def adapter_config(name: str) -> dict[str, Any] | None:
    """Return the adapter_config.json of a folder or hub id; None where there is none.

    Raises:
        SurroundingsError: the hub cannot be reached, or has nothing of this name.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        file = folder / ADAPTER_CONFIG
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    from transformers.utils import cached_file

    def fetch() -> Any:
        return cached_file(name, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False)

    try:
        path = with_retries(fetch, name)
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, name, None, "the model") from error
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def _base_of(settings: Mapping[str, Any], name: str) -> str:
    base = settings.get("base_model_name_or_path")
    if not base:
        raise UsageError(f"{name}: its {ADAPTER_CONFIG} names no base model; name one with --base")
    return str(base)


def load(trained: Trained, *, accelerator: str = "auto") -> Loaded:
    """Load base, adapter and tokenizer, for scoring and for generation.

    Raises:
        SurroundingsError: files are missing or cannot be fetched, or the device is not there.
        UsageError: it is no causal language model.
    """
    from peft import PeftModel

    from orpo_lightning.data.tokenizer import load_tokenizer

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
        model = PeftModel.from_pretrained(model, trained.adapter)
    tokenizer = load_tokenizer(tokenizer_of(trained), **where)
    rows = {
        "model": trained.base if trained.adapter is None else f"{trained.base} with {trained.adapter}",
        "quantization": f"{trained.quantization} ({trained.reason})",
        "precision": f"{str(dtype).removeprefix('torch.')} ({precision.reason})",
        "attention": f"{attention.value} ({attention.reason})",
    }
    return Loaded(model.eval(), tokenizer, rows)


def tokenizer_of(trained: Trained) -> str:
    """Return where the tokenizer is: with the adapter where it was saved there, else with the base."""
    folder = Path(trained.weights).expanduser()
    if trained.adapter is None or (folder / "tokenizer_config.json").is_file():
        return trained.weights
    return trained.base
