"""Command lines for the tests of faults, and callbacks that bring faults about in the middle of a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import pytest
from lightning.pytorch.loggers import CSVLogger

from orpo_lightning.__main__ import main

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
PLAIN = {
    "model.quantization": "none",
    "model.lora_r": 4,
    "data.validation": "null",
    "data.test": "null",
    "data.cache_dir": "cache",
    "data.batch_size": 2,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.logger": "false",
    "run_dir": "run",
}


def pairs(count: int = 16) -> list[dict[str, str]]:
    """Return rows of text."""
    return [
        {
            "prompt": f"Count to {n}.",
            "chosen": f" One, two, and so on to {n}.",
            "rejected": f" No, {n} it is.",
        }
        for n in range(count)
    ]


def write_pairs(file: Path, rows: list[Any] | None = None) -> Path:
    """Write rows as JSON lines; return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in (pairs() if rows is None else rows)), "utf-8")
    return file


class Done(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What stands on stderr, which must be one line."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.out
        return lines[0]


class Run(NamedTuple):
    """Runs command lines in a folder."""

    folder: Path
    base: str
    train: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: object) -> Done:
        """Run any words."""
        self.capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *self.capsys.readouterr())

    def fit(self, *words: object, **settings: object) -> Done:
        """Fit the tiny model to a few pairs; `data__train=x` stands for --data.train x."""
        given = {name.replace("__", "."): value for name, value in settings.items()}
        values = {"model.base_model": self.base, "data.train": self.train, **PLAIN, **given}
        flags = [word for name, value in values.items() for word in (f"--{name}", value)]
        return self("fit", "-c", QUICKSTART, *flags, *words)


class FillDisk(lightning.Callback):
    """Fills the disk of a folder, but for a few bytes, after an optimizer step or when fitting ends."""

    def __init__(self, folder: str, step: int = 0, leave: int = 0) -> None:
        """Fill it after `step` steps; 0 waits for the end."""
        self.folder, self.step, self.leave = folder, step, leave

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self._fill()

    def on_fit_end(self, trainer: Any, *_: Any) -> None:
        if not self.step:
            self._fill()

    def _fill(self) -> None:
        fill(Path(self.folder), self.leave)


def fill(folder: Path, leave: int = 0) -> None:
    """Fill the disk of a folder, but for a few bytes; then the last block of a run's log too."""
    free = shutil.disk_usage(folder).free - leave
    with (folder / "filler").open("ab") as file:
        os.posix_fallocate(file.fileno(), file.tell(), max(1, free))
    for log in folder.glob("*/log") if not leave else ():
        with log.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(b" "):
                pass


class KillWorker(lightning.Callback):
    """Kills one of the processes that prepare batches."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


class KeyLogger(CSVLogger):
    """A logger that needs secrets, as those of paid services do."""

    def __init__(self, save_dir: str, api_key: str, endpoint: str) -> None:
        super().__init__(save_dir)
        self.key, self.endpoint = api_key, endpoint
