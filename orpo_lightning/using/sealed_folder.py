"""Folders that appear whole or not at all, and that prove to be what was written when they are read."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orpo_lightning.errors import CheckpointError
from orpo_lightning.full_disk import room_for
from orpo_lightning.whole_files import sync

MANIFEST = "SHA256SUMS"


@contextmanager
def staged(folder: Path, what: str, advice: str) -> Iterator[Path]:
    """Give a folder's name to write into; sealed, it takes its place where nothing went wrong.

    Of a link it is the folder behind it that is exchanged: on another disk, most often, and there it stays.

    Args:
        folder: what is to be there in the end.
        what: it is, for a message that the disk is full.
        advice: what to do then besides making room.

    Raises:
        SurroundingsError: the disk is full.
    """
    folder = folder.resolve()
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with room_for(folder, what, advice):
            yield staging
            _open_to_umask(staging)
            _seal(staging)
            _put(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def bring_back(folder: Path) -> None:
    """Undo an exchange that a kill cut short."""
    folder = folder.resolve()
    if _aside(folder).exists() and not folder.exists():
        _aside(folder).replace(folder)
    shutil.rmtree(_aside(folder), ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write for a folder; only where none is at work on it."""
    folder = folder.resolve()
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        if path.suffix[1:].isdigit():
            shutil.rmtree(path, ignore_errors=True)


def check_seal(folder: Path, start: str = "") -> list[Path]:
    """Return the files that a folder's manifest names, each compared with its digest.

    Args:
        folder: sealed.
        start: of the names of those to compare; all of them where left out.

    Raises:
        CheckpointError: there is no manifest, or a file is missing or another than was written.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}, so nothing tells whether its files are whole: expected a folder "
            "that fit or merge has written"
        )
    files = []
    for name, wanted in read_manifest(folder).items():
        if not name.startswith(start):
            continue
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {manifest} names it")
        if digest_of_file(file) != wanted:
            raise CheckpointError(f"{file} is not what was written: its digest differs from {manifest}")
        files.append(file)
    return files


def read_manifest(folder: Path) -> dict[str, str]:
    """Return the digest that a sealed folder's manifest has of each file, by the file's name in it."""
    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def digests_of_weights(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights, as the manifest has it; without one, as it is."""
    known = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    files = sorted(folder.glob("*.safetensors"))
    return {file.name: known.get(file.name) or digest_of_file(file) for file in files}


def name_in(folder: Path, file: Path) -> str:
    """Return what a file of a folder is called in its manifest, and in a repository: its path from there."""
    return file.relative_to(folder).as_posix()


def digest_of_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _seal(folder: Path) -> None:
    """Write down the files' digests, for `sha256sum -c SHA256SUMS`, and see all of it onto the disk."""
    # A tokenizer with several chat templates has a folder of its own for them.
    below = sorted(folder.rglob("*"))
    lines = [f"{digest_of_file(path)}  {name_in(folder, path)}\n" for path in below if path.is_file()]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")
    for path in (*below, folder / MANIFEST, folder):
        sync(path)


def _put(staging: Path, folder: Path) -> None:
    """Let a finished folder take the place of an older one: a kill leaves the old or the new one, whole."""
    bring_back(folder)
    if folder.exists():
        folder.replace(_aside(folder))
    staging.replace(folder)
    shutil.rmtree(_aside(folder), ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _open_to_umask(folder: Path) -> None:
    """Give every file the permissions of an ordinary new one; safetensors files are written 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
