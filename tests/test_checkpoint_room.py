"""What a run will take of the disk is asked for before it begins: all its files, and one being written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from training import make_trainer

from orpo_lightning.callbacks import AdapterExport, BestCheckpoint, ResumeCheckpoint, checkpoints
from orpo_lightning.checkpoint_io import IntactCheckpointIO

WEIGHTS = 4 * 50_000
CHECKPOINT = 3 * WEIGHTS  # with both moments


class Export(AdapterExport):
    """Writes a weight file, of a module that is no PreferenceModule."""

    def _save(self, trainer: Any, module: Any, name: str) -> None:
        folder = self.folder(trainer, name)
        folder.mkdir(exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(bytes(WEIGHTS))


class Numbers(lightning.LightningModule):
    """Trains a weight of 50,000 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(50_000))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.weight.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the bytes a run asks for."""
    found: list[int] = []
    monkeypatch.setattr(checkpoints, "check_room", lambda folder, needed: found.append(needed))
    return found


def fit(folder: Path, steps: int, validates: bool, saved: Path | None = None) -> int:
    """Train; return the most bytes that the folder held at once."""
    most = 0

    class Watch(lightning.Callback):
        def on_save_checkpoint(self, *_: Any) -> None:
            nonlocal most
            held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            most = max(most, held + CHECKPOINT)

    ours = [ResumeCheckpoint(str(folder), 1), BestCheckpoint(str(folder)), Export(str(folder)), Watch()]
    settings = {"max_steps": steps, "val_check_interval": 1, "plugins": [IntactCheckpointIO()]}
    trainer = make_trainer(enable_checkpointing=True, callbacks=ours, **settings)
    validation = DataLoader(torch.ones(1, 1)) if validates else None
    trainer.fit(Numbers(), DataLoader(torch.ones(8, 1)), validation, ckpt_path=saved)
    return most


@pytest.mark.parametrize("validates", [True, False])
def test_room_is_asked_for_all_files_at_their_most(validates: bool, asked: list[int], tmp_path: Path) -> None:
    fit(tmp_path, 3, validates)
    most = fit(tmp_path, 6, validates, tmp_path / "last.ckpt")  # by now every file is there
    files = 4 if validates else 3
    adapters = 2 if validates else 1
    assert asked[0] == files * CHECKPOINT + adapters * WEIGHTS
    assert most == pytest.approx(asked[0], rel=0.1)
    assert asked[1] == pytest.approx(CHECKPOINT, rel=0.1)  # a run that goes on needs room for one more
