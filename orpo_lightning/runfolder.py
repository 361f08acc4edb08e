"""The fixed folder of a run: its name, what is kept where, and which of its checkpoints to go on from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from orpo_lightning.errors import CheckpointError, UsageError

PACKAGE_LOGGER = logging.getLogger("orpo_lightning")
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


def run_folder(run_dir: str | None, config_files: Iterable[str]) -> Path:
    """Return the folder of a run: as given, else `runs/` and the name of the first config file."""
    if run_dir:
        return Path(run_dir).expanduser()
    first = next(iter(config_files), None)
    return Path("runs") / (Path(first).stem if first else "default")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint a run continues from: last.ckpt, or where there is none the youngest."""
    last = folder / CHECKPOINTS / LAST
    if last.is_file():
        return last
    others = (folder / CHECKPOINTS).glob("*.ckpt")
    return max(others, key=lambda path: path.stat().st_mtime, default=None)


def choose_checkpoint(folder: Path, resume: str, training: bool) -> tuple[Path | None, str]:
    """Decide which checkpoint to load, and say so in words.

    Args:
        folder: The run's folder.
        resume: "none", "auto" or a path.
        training: Whether the run writes checkpoints itself.

    Raises:
        UsageError: a new run would overwrite the checkpoints of an older one.
        CheckpointError: the checkpoint asked for is not there.
    """
    newest = newest_checkpoint(folder)
    if resume == "none":
        if training and newest is not None:
            raise UsageError(
                f"{folder} already holds a run ({CHECKPOINTS}/{newest.name}): --resume auto continues it, "
                "--run_dir NEW starts another"
            )
        return None, "the base model, no checkpoint (--resume none)"
    if resume == "auto":
        if newest is not None:
            return newest, str(newest)
        if training:
            return None, f"nothing to resume in {folder}: starting from the base model"
        raise CheckpointError(f"--resume auto: no checkpoint in {folder / CHECKPOINTS}: train first")
    path = Path(resume).expanduser()
    if not path.is_file():
        there = f"; newest in {folder}: {newest}" if newest else ""
        raise CheckpointError(f"--resume: no such checkpoint: {resume}{there}")
    return path, str(path)


def check_checkpoint(path: Path) -> None:
    """Find a damaged file before the model is loaded for it.

    Raises:
        CheckpointError: the file cannot be read as a checkpoint.
    """
    import torch

    try:
        # Mapped into memory: the tables are read, the weights are not.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a different family for every kind of damage
        reason = next(iter(str(error).splitlines()), "") or "it is empty"
        kind = type(error).__name__
        raise CheckpointError(f"checkpoint {path} is damaged ({kind}: {reason})") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"checkpoint {path} holds no state_dict: it is not a checkpoint of a run")


class _ConsoleHandler(logging.Handler):
    """Writes to stdout as it is at that moment, errors to stderr; a StreamHandler keeps its first stream."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.levelno >= logging.ERROR
        stream: TextIO = sys.stderr if error else sys.stdout
        prefix = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        print(prefix + record.getMessage(), file=stream, flush=True)


def log_to_console(rank: int) -> None:
    """Let the package's messages appear on the terminal, once and on the first rank only (errors on all)."""
    PACKAGE_LOGGER.setLevel(logging.DEBUG)
    for handler in [h for h in PACKAGE_LOGGER.handlers if isinstance(h, _ConsoleHandler)]:
        PACKAGE_LOGGER.removeHandler(handler)
    console = _ConsoleHandler()
    console.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    PACKAGE_LOGGER.addHandler(console)


def log_to_file(folder: Path) -> None:
    """Append the package's messages to `log` in the run's folder, tracebacks of faults included."""
    close_log_file()
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    PACKAGE_LOGGER.addHandler(handler)


def close_log_file() -> None:
    """Stop writing to a run's log."""
    for handler in [h for h in PACKAGE_LOGGER.handlers if isinstance(h, logging.FileHandler)]:
        PACKAGE_LOGGER.removeHandler(handler)
        handler.close()
