"""The fixed folder of a run: its name, what is kept where, and which of its checkpoints to go on from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from orpo_lightning.errors import CheckpointError, UsageError
from orpo_lightning.masking import mask_text
from orpo_lightning.run_log import RunLogHandler

PACKAGE_LOGGER = logging.getLogger("orpo_lightning")
CHECKPOINTS = "checkpoints"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""The newest state of a run, the one before it, and that of the lowest validation value."""


def run_folder(run_dir: str | None, config_files: Iterable[str]) -> Path:
    """Return the folder of a run: as given, else `runs/` and the name of the first config file."""
    if run_dir:
        return Path(run_dir).expanduser()
    first = next(iter(config_files), None)
    return Path("runs") / (Path(first).stem if first else "default")


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the one to go on from first: last, the one before it, the youngest."""
    found = [path for path in (folder / CHECKPOINTS).glob("*.ckpt") if not path.name.startswith(".")]
    order = {LAST: 0, PREVIOUS: 1}
    return sorted(found, key=lambda path: (order.get(path.name, 2), -path.stat().st_mtime))


class Chosen(NamedTuple):
    """Which checkpoint a run begins with."""

    words: str
    """For the header."""
    path: Path | None = None
    """None: the base model."""
    content: dict[str, Any] | None = None
    """What the checkpoint holds; its tensors stay on the disk until they are read."""


def choose_checkpoint(folder: Path, resume: str, training: bool) -> Chosen:
    """Decide which checkpoint to load.

    Args:
        folder: The run's folder.
        resume: "none", "auto" (the newest that is intact) or a path.
        training: Whether the run writes checkpoints itself.

    Raises:
        UsageError: a new run would overwrite the checkpoints of an older one.
        CheckpointError: the checkpoint asked for is not there or damaged, or all are.
    """
    there = checkpoints_of(folder)
    if resume == "none":
        if training and there:
            raise UsageError(
                f"{folder} already holds a run ({CHECKPOINTS}/{there[0].name}): --resume auto continues it, "
                "--run_dir NEW starts another"
            )
        return Chosen("the base model, no checkpoint (--resume none)")
    if resume == "auto":
        if there:
            return _newest_intact(there)
        if training:
            return Chosen(f"nothing to resume in {folder}: starting from the base model")
        raise CheckpointError(f"--resume auto: no checkpoint in {folder / CHECKPOINTS}: train first")
    path = Path(resume).expanduser()
    if not path.is_file():
        newest = f"; newest in {folder}: {there[0]}" if there else ""
        raise CheckpointError(f"--resume: no such checkpoint: {resume}{newest}")
    try:
        return Chosen(str(path), path, check_checkpoint(path))
    except CheckpointError as error:
        intact = next((other for other in there if other != path and _is_intact(other)), None)
        hint = f"newest intact one: {intact}" if intact else f"none in {folder} is intact"
        raise CheckpointError(f"{error}; {hint}") from error


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Find a damaged file before the model is loaded for it; return what it holds, the weights not yet read.

    Raises:
        CheckpointError: the file cannot be read as a checkpoint, or differs from its digest.
    """
    from orpo_lightning.checkpoint_files import read_checkpoint

    # Mapped into memory: the weights pass by for the digest and are not kept.
    return read_checkpoint(path, mmap=True)


def _newest_intact(there: list[Path]) -> Chosen:
    """Walk back to the newest checkpoint that is what was written, telling of each that is not."""
    for path in there:
        try:
            return Chosen(str(path), path, check_checkpoint(path))
        except CheckpointError as error:
            PACKAGE_LOGGER.warning("%s; trying the one before", error)
    raise CheckpointError(
        f"--resume auto: none of the checkpoints in {there[0].parent} is intact "
        f"({', '.join(path.name for path in there)}); start again with --run_dir NEW"
    )


def _is_intact(path: Path) -> bool:
    try:
        check_checkpoint(path)
    except CheckpointError:
        return False
    return True


class _ConsoleHandler(logging.Handler):
    """Writes to stdout as it is at that moment, errors to stderr; a StreamHandler keeps its first stream."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.levelno >= logging.ERROR
        stream: TextIO = sys.stderr if error else sys.stdout
        prefix = {logging.WARNING: "warning: ", logging.ERROR: "error: "}.get(record.levelno, "")
        print(mask_text(prefix + record.getMessage()), file=stream, flush=True)


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
    PACKAGE_LOGGER.addHandler(RunLogHandler(folder / "log", PACKAGE_LOGGER))


def close_log_file() -> None:
    """Stop writing to a run's log."""
    for handler in [h for h in PACKAGE_LOGGER.handlers if isinstance(h, logging.FileHandler)]:
        PACKAGE_LOGGER.removeHandler(handler)
        handler.close()
