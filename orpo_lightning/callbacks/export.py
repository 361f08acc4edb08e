"""Save what was trained as an ordinary PEFT folder, with tokenizer and model card."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning
import torch

from orpo_lightning.callbacks.model_card import model_card
from orpo_lightning.modeling import causal_model
from orpo_lightning.sharding import is_sharded, whole_weights
from orpo_lightning.using.model_files import TRAINING
from orpo_lightning.using.sealed_folder import bring_back, remove_unfinished, staged

log = logging.getLogger(__name__)
NAMES = ("adapter", "adapter-best")
"""Folders of the last weights and of the best."""
_ADVICE = "the one before is intact, and --resume auto goes on from the last checkpoint"


class AdapterExport(lightning.Callback):
    """Saves the adapter (or, in full fine-tuning, the model) at the end and at the best validation value.

    `PeftModel.from_pretrained(base, "DIR/adapter")` loads it; so do transformers and vLLM. SHA256SUMS in it
    tells whether the files are what was written; training.json what the base was quantised to.

    Args:
        dirpath: folder that gets `adapter/` (the last weights) and `adapter-best/` (those of the lowest
        `monitor`);
            the run's folder where left open.
        monitor: logged value whose lowest is the best.
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "val/loss") -> None:
        """Keep the settings."""
        self.dirpath = dirpath
        self.monitor = monitor
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, so that a resumed run does not overwrite a better adapter."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best value of the run so far."""
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Bring back a folder that a killed run had moved aside, and remove one it had not finished."""
        if trainer.is_global_zero:
            for folder in (self.folder(trainer, name) for name in NAMES):
                bring_back(folder)
                remove_unfinished(folder)

    def folder(self, trainer: lightning.Trainer, name: str) -> Path:
        """Return where the export of one of NAMES is."""
        return Path(self.dirpath or trainer.default_root_dir) / name

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save where this validation was the best yet."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit" or value is None:
            return
        if not torch.isfinite(value) or (self.best is not None and value.item() >= self.best):
            return
        self.best = value.item()
        self._save(trainer, pl_module, "adapter-best")

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the last weights, also of a run that was stopped after its last step."""
        self._save(trainer, pl_module, "adapter")

    def _save(self, trainer: lightning.Trainer, module: Any, name: str) -> None:
        # Gathering takes all ranks; afterwards the first one writes.
        state = whole_weights(module.model) if is_sharded(module) else None
        if not trainer.is_global_zero:
            return
        folder = self.folder(trainer, name)
        with staged(folder, "the adapter", _ADVICE) as staging:
            _write(trainer, module, staging, state)
        log.info("saved %s (step %d)", folder, trainer.global_step)


def _write(trainer: lightning.Trainer, module: Any, folder: Path, state: dict[str, Any] | None) -> None:
    """Write all files of an export into a new folder; `state` are weights that were shared out."""
    _save_weights(module, folder, state)
    processor = getattr(getattr(trainer, "datamodule", None), "processor", None)
    if processor is not None:
        processor.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(trainer, module), encoding="utf-8")
    if causal_model(module.model) is not module.model:
        facts = {key: module.hparams[key] for key in ("quantization", "lora_init", "lora_variant")}
        (folder / TRAINING).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _save_weights(module: Any, folder: Path, state: dict[str, Any] | None) -> None:
    model = module.model
    given = {} if state is None else {"state_dict": state}
    if causal_model(model) is model:
        model.save_pretrained(folder, **given)
        return
    initial = getattr(module, "_initial_adapter", None)
    # save_embedding_layers: "auto" would ask the hub whether the vocabulary grew; it never does here.
    if initial is None:
        model.save_pretrained(folder, save_embedding_layers=False, **given)
    else:
        model.save_pretrained(
            folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=initial.name
        )
