"""Locks on files, which the system lets go of when a process ends, however it does."""

from __future__ import annotations

import errno
import fcntl
import logging
from functools import cache
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)
# Lustre mounted without flock, NFS without lockd, some file systems in user space.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


def lock(file: IO[str], *, wait: bool = False) -> bool:
    """Lock an open file for this process; where its file system has no locks, say so once and go on.

    Args:
        file: open for writing; the lock lasts until it is closed.
        wait: until another process lets go of it.

    Returns:
        False where another process has it.
    """
    try:
        # lockf, not flock: data workers, which outlive a killed run by seconds, do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn(Path(file.name).parent)
    return True


@cache
def _warn(folder: Path) -> None:
    log.warning("%s: this file system has no locks: do not start two runs in this folder", folder)
