"""Training validates, saves and ends between two optimizer steps only, however Lightning counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from training import make_trainer

from orpo_lightning.callbacks import BestCheckpoint, ResumeCheckpoint


class Steps(lightning.LightningModule):
    """A weight that is trained on numbers; notes after which micro-batch of all it validated."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.stop_after, self.seen = stop_after, 0
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.stop_after:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", -float(self.seen))

    def on_validation_start(self) -> None:
        self.validated.append(self.seen)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, module: Steps, **settings: Any) -> None:
    """Train on passes of 10 micro-batches, four to a step: a pass ends with a step of two."""
    callbacks = [ResumeCheckpoint(str(folder), 99), BestCheckpoint(str(folder))]
    defaults = {"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": 4, "num_sanity_val_steps": 0}
    trainer = make_trainer(enable_checkpointing=True, callbacks=callbacks, **(defaults | settings))
    trainer.fit(module, DataLoader(torch.ones(10, 1)), DataLoader(torch.ones(1, 1)))


@pytest.mark.parametrize(
    ("settings", "validated"),
    [
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 14, 18, 20]),  # due: 12, 16
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, [4, 8, 10, 14, 18]),  # 3, 6, 9, 12, …
        ({"val_check_interval": 1, "check_val_every_n_epoch": None}, [4, 8, 10, 14, 18, 20]),
        ({"val_check_interval": 9, "check_val_every_n_epoch": None}, [10, 18]),
        ({"val_check_interval": 3}, [4, 8, 10, 14, 18, 20]),  # of each pass: 3, 6, 9
        ({"val_check_interval": 0.5}, [8, 10, 18, 20]),  # 5, 10
        ({"val_check_interval": 1.0}, [10, 20]),
        ({"val_check_interval": 4, "limit_train_batches": 7}, [4, 11]),
        ({"val_check_interval": 4, "accumulate_grad_batches": 1}, [4, 8, 14, 18]),
    ],
)
def test_a_validation_that_falls_within_a_step_comes_after_it(
    settings: dict[str, Any], validated: list[int], tmp_path: Path
) -> None:
    module = Steps()
    fit(tmp_path, module, **settings)
    assert module.validated == validated


def test_each_best_checkpoint_is_of_a_whole_step(tmp_path: Path) -> None:
    module = Steps()
    fit(tmp_path, module, val_check_interval=3, max_epochs=1, limit_train_batches=8)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert module.validated == [4, 8]
    assert best["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"] == 8
    assert best["global_step"] == 2


@pytest.mark.parametrize(("stop_after", "end"), [(1, 4), (4, 4), (9, 10), (12, 14)])
def test_a_stop_that_is_asked_for_within_a_step_comes_after_it_with_a_validation(
    stop_after: int, end: int, tmp_path: Path
) -> None:
    module = Steps(stop_after)
    fit(tmp_path, module, val_check_interval=1.0)
    assert module.seen == end
    assert module.validated[-1] == end
    assert (tmp_path / "last.ckpt").is_file()


def test_early_stopping_ends_between_two_steps(tmp_path: Path) -> None:
    module = Steps()
    impatient = lightning.pytorch.callbacks.EarlyStopping("val/loss", patience=0, mode="max", min_delta=99)
    callbacks = [impatient, ResumeCheckpoint(str(tmp_path), 99)]
    trainer = make_trainer(
        enable_checkpointing=True,
        callbacks=callbacks,
        max_steps=-1,
        max_epochs=2,
        accumulate_grad_batches=4,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, DataLoader(torch.ones(20, 1)), DataLoader(torch.ones(1, 1)))
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 12  # due: 5, 10
    assert last["global_step"] == 3
