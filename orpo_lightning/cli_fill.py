"""Fill the keys that a configuration leaves open; what it sets is checked and always wins.

Every function changes the parsed configuration in place, so that the saved config.yaml has what was resolved,
and uses `.get`, so that a module or data module of your own may lack any of the keys.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from orpo_lightning import hardware, modeling, runfolder, torchrun
from orpo_lightning.errors import UsageError
from orpo_lightning.strategies import TIMEOUT, Plan, choose_strategy

_LOG = "lightning.pytorch.loggers.TensorBoardLogger"
# A fixed version: a resumed run goes on in the same curves.
_OF_LOG = {"name": "", "version": "tb", "default_hp_metric": False}


def check_length(config: Namespace) -> None:
    """Refuse Trainer settings that would train nothing, before a model is loaded for them.

    Raises:
        UsageError: names the key and what it must be.
    """
    trainer = config.trainer
    if trainer.get("accumulate_grad_batches", 1) < 1:
        raise UsageError(
            f"trainer.accumulate_grad_batches: expected 1 or more, found {trainer.accumulate_grad_batches}"
        )
    for key in ("max_steps", "max_epochs"):
        if trainer.get(key) == 0:
            raise UsageError(f"trainer.{key}: 0 trains nothing; expected 1 or more, or -1 for no limit")


def check_base_model(config: Namespace) -> None:
    """Refuse a base model that cannot be had or trained, before hours go into the data.

    Raises:
        SurroundingsError: there is no such model, or the hub does not give it.
        UsageError: it is no causal language model, or needs code that is not trusted.
    """
    base = _get(config, "model", "base_model")
    if isinstance(base, str):  # None: the module has the right words for it
        modeling.check_base(
            base,
            revision=_get(config, "model", "revision"),
            trust_remote_code=bool(_get(config, "model", "trust_remote_code")),
            quantization=_get(config, "model", "quantization") or "none",
        )


def expand_home(config: Namespace) -> None:
    """Let `~` stand for the user's folder in names that may be those of a folder or of a model on the hub."""
    for section, key in (("model", "base_model"), ("data", "tokenizer")):
        value = _get(config, section, key)
        if isinstance(value, str) and value.startswith("~"):
            config[section][key] = str(Path(value).expanduser())


def trusted_code(config: Namespace) -> dict[str, str]:
    """Return a row of the header where Python code of a repository is run."""
    places = {"model": "base_model", "data": "tokenizer"}
    trusting = [part for part in places if _get(config, part, "trust_remote_code")]
    names = sorted({str(_get(config, part, places[part])) for part in trusting})
    return {"remote code": f"trusted: Python code of {' and '.join(names)} is run"} if names else {}


def fill_hardware(config: Namespace) -> dict[str, str]:
    """Set the precision that fits the device, or check the one that is set; return the header's rows."""
    trainer = config.trainer
    device = _device(trainer)
    if trainer.get("plugins"):  # may hold a precision plugin, beside which the Trainer accepts no precision
        return {"device": device.name}
    if trainer.get("precision") is None:
        choice = hardware.choose_precision(device)
        trainer.precision = choice.value
    else:
        hardware.check_precision(device, trainer.precision)
        choice = hardware.Choice(hardware.normalize_precision(trainer.precision), "set by the user")
    # "auto" is left to the module, which knows what its model supports.
    hardware.check_attention(device, trainer.precision, _get(config, "model", "attention") or "auto")
    return {"device": device.name, "precision": f"{choice.value} ({choice.reason})"}


def fill_processes(config: Namespace) -> int:
    """Take the numbers of devices and nodes from torchrun where they are left open; return their product.

    Raises:
        UsageError: they are set, to others.
    """
    trainer = config.trainer
    for key, found in torchrun.started().items():
        if trainer.get(key) not in ("auto", 1, None, -1, "-1", found, str(found)):
            raise UsageError(f"trainer.{key}: torchrun started {found}, found {trainer[key]}: leave it out")
        trainer[key] = found
    torchrun.meet_anew(TIMEOUT)
    return _devices(trainer) * (trainer.get("num_nodes") or 1)


def fill_strategy(config: Namespace) -> dict[str, str]:
    """Choose the strategy of several processes, or check the one that is set; return the header's rows.

    Raises:
        UsageError: it cannot work; names the one that does.
    """
    trainer, strategy = config.trainer, config.trainer.get("strategy")
    init_args: Any = {}
    if isinstance(strategy, Namespace):
        init_args = strategy.get("init_args") or {}
        strategy = strategy.class_path
    if not isinstance(strategy, str):
        return {}
    strategy = strategy.rpartition(".")[2]
    optimizer = _get(config, "model", "optimizer")
    keys = ("quantization", "lora_r", "lora_variant", "lora_init")
    ours = {key: value for key in keys if (value := _get(config, "model", key)) is not None}
    choice = choose_strategy(
        Plan(
            strategy=strategy,
            processes=fill_processes(config),
            device=_device(trainer).kind,
            precision=hardware.normalize_precision(trainer.get("precision") or "32-true"),
            optimizer=getattr(optimizer, "class_path", None) or "",
            has_deepspeed=importlib.util.find_spec("deepspeed") is not None,
            stage=_zero_stage(strategy, init_args),
            saves=trainer.get("enable_checkpointing") is not False,
            **ours,
        )
    )
    if choice is None:
        return {}
    trainer.strategy = Namespace(class_path=choice.value, init_args=Namespace(timeout=TIMEOUT))
    return {"strategy": f"{choice.value.rpartition('.')[2]} ({choice.reason})"}


def _zero_stage(strategy: str, init_args: Any) -> int:
    """Return ZeRO's stage of one of Lightning's names (deepspeed_stage_3_offload), or of the class."""
    digits = [part for part in strategy.split("_") if part.isdigit()]
    return int(digits[0]) if digits else int(init_args.get("stage", 2))


def _devices(trainer: Namespace) -> int:
    """Return the devices of a node; those of a list or text of numbers are counted."""
    devices = trainer.get("devices", "auto")
    if devices in ("auto", -1, "-1"):
        import torch

        return torch.cuda.device_count() if _device(trainer).kind == "cuda" else 1
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    return len(devices) if isinstance(devices, list) else int(devices)


def _device(trainer: Namespace) -> hardware.Device:
    accelerator = trainer.get("accelerator")
    return hardware.detect_device(accelerator if isinstance(accelerator, str) else "auto")


def fill_epochs(config: Namespace) -> dict[str, str]:
    """Train for one pass over the data where no end is set; Lightning's own default is a thousand."""
    trainer = config.trainer
    ends = (trainer.get("max_epochs"), trainer.get("max_time"))
    if trainer.get("max_steps", -1) != -1 or any(end is not None for end in ends):
        return {}
    trainer.max_epochs = 1
    return {"length": "one pass over the data (neither trainer.max_steps nor trainer.max_epochs is set)"}


def fill_tokenizer(config: Namespace) -> None:
    """Take the tokenizer from the base model where none is set: same revision, same trust."""
    model, data = config.get("model"), config.get("data")
    base = _get(config, "model", "base_model")
    if base is None or not isinstance(data, Namespace) or "tokenizer" not in data:
        return
    if data.tokenizer is None:
        data.tokenizer = base
    if data.tokenizer != base:
        return  # another repository has revisions of its own, and trust is given to one repository at a time
    if data.get("revision") is None and "revision" in data:
        data.revision = model.get("revision")
    if "trust_remote_code" in data:
        data.trust_remote_code = bool(data.trust_remote_code or model.get("trust_remote_code"))


def fill_run_folder(config: Namespace, config_files: Iterable[str]) -> Path:
    """Set the run's folder, and put the Trainer's files and the TensorBoard log into it."""
    folder = runfolder.run_folder(config.get("run_dir"), config_files)
    trainer = config.trainer
    config.run_dir = str(folder)
    if trainer.get("default_root_dir") is None:
        trainer.default_root_dir = str(folder)
    if trainer.get("logger") is None:
        init_args = Namespace(save_dir=str(folder), **_OF_LOG)
        trainer.logger = Namespace(class_path=_LOG, init_args=init_args)
    return folder


def filled_places(config: Namespace | Mapping[str, Any]) -> list[str]:
    """Return the keys that hold the run's folder because `fill_run_folder` has put it there.

    Saved with the folder they would count as set, and the run that is repeated in another one would write
    into the first.

    Args:
        config: as it was filled, or what a config.yaml holds: earlier versions saved the folder.
    """
    plain = config.as_dict() if isinstance(config, Namespace) else config
    folder, trainer = plain.get("run_dir"), plain.get("trainer")
    if not folder or not isinstance(trainer, Mapping):
        return []
    found = ["trainer.default_root_dir"] if trainer.get("default_root_dir") == folder else []
    return [*found, "trainer.logger"] if _is_our_log(trainer.get("logger"), folder) else found


def _is_our_log(logger: Any, folder: str) -> bool:
    if not isinstance(logger, Mapping) or logger.get("class_path") != _LOG:
        return False
    ours = {"save_dir": folder, **_OF_LOG}
    given = logger.get("init_args") or {}
    # All else is empty by default; one that was set since is the user's logger.
    return {key: given.get(key) for key in ours} == ours and not any(given[key] for key in {*given} - {*ours})


def _get(config: Namespace, section: str, key: str) -> Any:
    part = config.get(section)
    return part.get(key) if isinstance(part, Namespace) else None
