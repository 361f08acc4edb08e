"""Checkpoint files that are whole or not there, and that prove to be what was written when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orpo_lightning.errors import CheckpointError, first_line
from orpo_lightning.full_disk import free_bytes, full_disk, is_full
from orpo_lightning.whole_files import sync

DIGEST = "digest"
"""Key of the digest in a checkpoint."""
_PLAIN = (str, int, float, complex, bool, bytes, type(None), torch.dtype, torch.device)


def digest_of(content: Any) -> str:
    """Return the SHA-256 of all tensors and plain values of a nested structure, in their order.

    Of any other object its type and its attributes count. It does not depend on the file the structure came
    from, so it also tells what changed on the way from the disk into memory.

    Args:
        content: mappings, sequences, sets, tensors (each is brought to the CPU by itself), numbers, texts.
    """
    hasher = hashlib.sha256()
    _feed(hasher, content)
    return hasher.hexdigest()


def _feed(hasher: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)} {value.requires_grad}\n".encode())
        hasher.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, _PLAIN):
        hasher.update(f"{type(value).__name__} {value!r}\n".encode())
    elif isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)}\n".encode())
        for key, item in value.items():
            _feed(hasher, key)
            _feed(hasher, item)
    elif isinstance(value, (list, tuple, Set)):
        # A set has no order of its own, and strings are hashed otherwise in every process.
        items = sorted(value, key=repr) if isinstance(value, Set) else value
        hasher.update(f"sequence {len(items)}\n".encode())
        for item in items:
            _feed(hasher, item)
    else:
        hasher.update(f"object {type(value).__qualname__}\n".encode())
        _feed(hasher, getattr(value, "__dict__", {}))


def write_checkpoint(content: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint with its digest: the whole file appears under its name, or the old one stays.

    Args:
        content: what `torch.load(weights_only=True)` can read again.
        path: the file; its folder is made.
        previous: where the file that is there now is kept.

    Raises:
        SurroundingsError: the disk is full; nothing is left of the attempt.
        OSError: the file cannot be written for another reason.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent, path.name)
    # In the same folder: from another file system it would be copied, and a copy can be cut short.
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staging.open("wb") as stream:
            torch.save({**content, DIGEST: digest_of(content)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        staging.replace(path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            staging.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):  # torch's writer makes of a full disk the latter
            raise
        needed = size_of(content)
        if is_full(error) or needed > free_bytes(path):
            advice = "raise save_every; the checkpoint before it is intact: --resume auto goes on from there"
            raise full_disk(path, "the checkpoint", advice, needed) from error
        raise


def remove_unfinished(folder: Path, name: str = "*.ckpt") -> None:
    """Remove what a process left that was killed while it wrote a checkpoint.

    Args:
        folder: of the checkpoints; no other process may be writing into it.
        name: of the checkpoint; all where left out.
    """
    for left in folder.glob(f".{name}.*"):
        left.unlink(missing_ok=True)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Return a checkpoint's content, compared with its digest; no pickled code is ever run.

    Args:
        path: the file.
        mmap: map the file into memory rather than read it all at once.

    Raises:
        CheckpointError: it is missing, damaged, or was not written by `write_checkpoint`.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises a different family for every kind of damage
        reason = "it is empty" if path.stat().st_size == 0 else first_line(error)
        kind = type(error).__name__
        raise CheckpointError(f"checkpoint {path} is damaged ({kind}: {reason})") from error
    verify(content, path)
    return content


def verify(content: Any, path: Path | str) -> None:
    """Compare a checkpoint's content with its digest, which is taken out.

    Raises:
        CheckpointError: they differ, or there is none.
    """
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"checkpoint {path} holds no state_dict: it is not a checkpoint of a run")
    wanted = content.pop(DIGEST, None)
    if wanted is None:
        raise CheckpointError(
            f"checkpoint {path} holds no digest, so nothing tells whether it is whole: expected one that "
            "orpo_lightning wrote"
        )
    if wanted != digest_of(content):
        raise CheckpointError(f"checkpoint {path} is damaged: its digest differs from its content")


def size_of(content: Any) -> int:
    """Return the bytes of all tensors of a nested structure."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(size_of, content.values()))
    return sum(map(size_of, content)) if isinstance(content, (list, tuple)) else 0
