"""What a user can get wrong, each kind with the exit code that a script can act on."""


class UserError(ValueError):
    """A mistake the user can mend, in one line: what was expected, what was found, where, what to do."""

    exit_code = 2


class UsageError(UserError):
    """The configuration or the command line asks for something that cannot work (exit 2)."""


class DataError(UserError):
    """A data file or a row cannot be used (exit 3)."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or does not belong to this run (exit 4)."""

    exit_code = 4


class SurroundingsError(UserError):
    """The machine lacks something: a GPU, a library, a model file, disk space (exit 5)."""

    exit_code = 5


class DivergedError(UserError):
    """Training produced non-finite numbers (exit 6)."""

    exit_code = 6


_REFUSED = "DefaultCPUAllocator: can't allocate memory"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the memory of a device, or of the machine, has run out."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return _REFUSED in str(error) or bool(kinds & {"OutOfMemoryError", "MemoryError"})


def says_out_of_memory(line: str) -> bool:
    """Tell the same of another process, by the last line that it wrote: that of a traceback."""
    return _REFUSED in line or line.partition(":")[0].endswith("MemoryError")


def is_broken_connection(error: BaseException) -> bool:
    """Tell whether the connection to another process of the run broke, or it did not answer in time."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    words = ("gloo", "NCCL", "pair closure", "Connection closed by peer", "Connection reset by peer")
    return "DistError" in kinds or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
