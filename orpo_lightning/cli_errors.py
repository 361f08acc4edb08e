"""What an exception means to the person at the terminal: an exit code and one line (out of memory, a few)."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from orpo_lightning import runfolder
from orpo_lightning.errors import (
    SurroundingsError,
    UsageError,
    UserError,
    is_broken_connection,
    is_out_of_memory,
)
from orpo_lightning.full_disk import RUN_ELSEWHERE, WRITE_ELSEWHERE, free_space
from orpo_lightning.masking import mask_text
from orpo_lightning.stop_signals import Stopped

_LONGEST = 600
_DISK_AND_RIGHTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
OF_TRAINING = (
    "lower data.batch_size (raising trainer.accumulate_grad_batches keeps the step's size) or "
    "data.tokens_per_batch, where it is set, in a validation data.validation_batch_size, lower "
    "data.max_length, or set model.quantization nf4 and "
    "model.gradient_checkpointing true"
)
"""What to do when a training is out of memory."""
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes\n.*?\nErrors:\n(?P<errors>.*)\nGiven value type: "
    r"[^\n]*\nGiven value: (?P<value>.*)",
    re.DOTALL,
)
_OF_THE_PARSER = ("Not a valid subclass of ", "Expected a")
_CONNECTION_HINT = (
    "the connection to another process of this run broke or it did not come in time: see what that one says; "
    "--resume auto goes on from the last checkpoint"
)


class Advice(NamedTuple):
    """What to do, in options that the command has."""

    memory: str = OF_TRAINING
    """When it is out of memory; empty where it has no option for that."""
    place: str = "--run_dir"
    """The option that says where it writes; empty where there is none."""

    @property
    def when_full(self) -> str:
        """What to do besides making room."""
        known = {"--run_dir": f", or {RUN_ELSEWHERE}", "--out": f", or {WRITE_ELSEWHERE}"}
        return known.get(self.place, "")

    @property
    def when_closed(self) -> str:
        """What to do where nothing can be written."""
        known = {"--run_dir": "; set --run_dir to a folder that can be written"}
        return known.get(self.place, f"; name another place with {self.place}" if self.place else "")


_OF_FIT = Advice()


def debugging() -> bool:
    """Return whether tracebacks are wanted."""
    return os.environ.get("ORPO_DEBUG", "0") not in ("", "0")


def one_line(text: str) -> str:
    """Bring a text to one line of a readable length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def explain(error: BaseException, advice: Advice = _OF_FIT) -> tuple[int, str]:
    """Return the exit code and the line for an exception; an empty line where everything is said already."""
    if isinstance(error, SystemExit):
        return _exit_status(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted: --resume auto continues from the last checkpoint"
    error = _cause(error)
    if isinstance(error, UserError):
        return error.exit_code, one_line(str(error))
    if is_out_of_memory(error):
        # Notes of several lines: what was planned for the batch, and what would fit.
        said = "\n".join(getattr(error, "__notes__", []))
        return SurroundingsError.exit_code, said or f"out of memory: {advice.memory or _first(str(error))}"
    if is_broken_connection(error):
        # The note says which process it was; an empty one, that another process says so.
        notes = getattr(error, "__notes__", [f"{_CONNECTION_HINT} ({_first(str(error))})"])
        return SurroundingsError.exit_code, one_line(notes[-1])
    for code, line in (_environment_line(error, advice), _usage_line(error)):
        if line:
            return code, one_line(line)
    return 1, one_line(f"{type(error).__name__}: {error}") + " (set ORPO_DEBUG=1 for the traceback)"


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong first: a log on a full disk, say, fails again when the run is wound up."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, UserError):
            return at
        at = None if at.__suppress_context__ else at.__context__
    return error


def report(error: BaseException, advice: Advice = _OF_FIT) -> int:
    """Write an exception's line to the terminal and the run's log, its traceback to the log; return the code.

    Where tracebacks are wanted, the terminal gets it too.
    """
    if debugging() and not isinstance(error, SystemExit):
        print(mask_text("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    code, line = explain(error, advice)
    if line:
        with suppress(SurroundingsError):  # the log is on the disk that is full
            runfolder.PACKAGE_LOGGER.error(line)
    if not isinstance(error, (UserError, SystemExit, KeyboardInterrupt)):
        runfolder.PACKAGE_LOGGER.debug("traceback", exc_info=error)
    return code


def _exit_status(error: SystemExit) -> tuple[int, str]:
    if isinstance(error, Stopped):
        return error.code, error.line  # type: ignore[return-value]
    # Lightning makes of Ctrl-C exit(1), and of SIGTERM an exit without a code, which would count as success.
    if isinstance(error.__context__, KeyboardInterrupt):
        return explain(error.__context__)
    if type(error).__name__ == "SIGTERMException":
        return 143, "terminated: --resume auto continues from the last checkpoint"
    if error.code is None or isinstance(error.code, int):
        return error.code or 0, ""
    return 1, one_line(str(error.code))


def _environment_line(error: BaseException, advice: Advice) -> tuple[int, str]:
    code = SurroundingsError.exit_code
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if kinds & {"GatedRepoError"}:
        return code, f"access to this repository must be granted first (then `hf auth login`): {_first(text)}"
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"}:
        return code, f"not found on the hub (a private one needs `hf auth login`): {_first(text)}"
    if kinds & {"HfHubHTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}:
        return code, f"the hub cannot be reached (HF_HUB_OFFLINE, network): {_first(text)}"
    if "inline_container" in text or "PytorchStreamWriter failed" in text:  # torch.save on a full disk
        return code, f"a checkpoint could not be written, is the disk full? {_first(text)}"
    if isinstance(error, OSError) and error.errno is not None:
        return code, _disk_line(error, advice)
    if "DataLoader worker" in text:  # torch's words for a worker that is gone
        return code, (
            f"a data worker was killed or died ({_first(text).rstrip('.')}): the machine may be short of "
            "memory; lower data.num_workers, --resume auto continues from the last checkpoint"
        )
    if isinstance(error, ModuleNotFoundError):
        return code, f"the package {error.name} is not installed"
    return code, ""


def _disk_line(error: OSError, advice: Advice) -> str:
    what = _DISK_AND_RIGHTS.get(error.errno or 0, error.strerror)
    place = error.filename2 or error.filename
    if not isinstance(place, (str, os.PathLike)):
        place = _run_folder()  # a write says of no file that it was to it
    if error.errno in _FULL:
        free = free_space(Path(place))
        return f"{what}: {place}, free are {free}; make room{advice.when_full}"
    return f"{what}: {place}{advice.when_closed if error.errno in _DISK_AND_RIGHTS else ''}"


def _run_folder() -> Path:
    """Return the folder of the run's log, or the current one where there is none yet."""
    logs = [one for one in runfolder.PACKAGE_LOGGER.handlers if isinstance(one, logging.FileHandler)]
    return Path(logs[0].baseFilename).parent if logs else Path.cwd()


def _usage_line(error: BaseException) -> tuple[int, str]:
    # Our code and the Trainer's raise ValueError for their users; out of other libraries it is a fault.
    if isinstance(error, ValueError) and _raised_in(error) & {"orpo_lightning", "lightning"}:
        return UsageError.exit_code, str(error)
    if type(error).__name__ == "MisconfigurationException":
        return UsageError.exit_code, str(error)
    return UsageError.exit_code, _said_by_class(str(error))


def _said_by_class(text: str) -> str:
    """Return what a class that a configuration names said when it was made; nothing in any other message.

    jsonargparse hides it among the types that it tried besides.
    """
    found = _UNION.match(text)
    if not found:
        return ""
    entries = [entry.strip() for entry in re.split(r"^  - ", found["errors"], flags=re.MULTILINE)]
    said = [entry for entry in entries if entry and not entry.startswith(_OF_THE_PARSER)]
    classes = set(re.findall(r"class_path='(?:\w+\.)*(\w+)'", found["value"]))
    if len(said) == len(classes) == 1 and not said[0].startswith(name := classes.pop()):
        return f"{name}: {said[0]}"
    return said[0] if said else ""


def _raised_in(error: BaseException) -> set[str]:
    """Return the name of the top-level package whose code raised the error, as a set of one or none."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return {frames[-1][0].f_globals.get("__name__", "").partition(".")[0]} if frames else set()


def _first(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")
