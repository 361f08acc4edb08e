"""What went wrong while a base model or its tokenizer was loaded, in one line that says what to do."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from orpo_lightning.data.hub_errors import GRANT, is_gated, is_refused, is_unreachable, kinds
from orpo_lightning.errors import SurroundingsError, UsageError, UserError, first_line

_NO_SAFETENSORS = ("no file named model.safetensors", "cannot be loaded with `safetensors`")
_LFS_POINTER = b"version https://git-lfs"


def is_about_files(error: Exception) -> bool:
    """Tell whether an error is about what is loaded or where it comes from, and no fault of a program."""
    # The library of tokenizers raises a bare Exception for a file that is damaged.
    known = isinstance(error, (OSError, ValueError, ImportError, SafetensorError)) or type(error) is Exception
    return known or is_unreachable(error)


def explain_base(error: Exception, name: str, revision: str | None, key: str) -> UserError:
    """Return what an error of `from_pretrained` means.

    Args:
        error: what was raised.
        name: hub id or folder.
        revision: that was asked for.
        key: of the configuration that names it, such as model.base_model.
    """
    explained = _about_content(error, name, revision, key) or _about_hub(error, name, revision, key)
    if explained is None and (closed := _closed_file(name)):
        explained = SurroundingsError(f"{key}: permission denied: {closed}")
    return explained or SurroundingsError(f"{key}: cannot load {name!r}: {first_line(error)}")


def _about_content(error: Exception, name: str, revision: str | None, key: str) -> UserError | None:
    text = str(error)
    if "trust_remote_code" in text:
        section = key.partition(".")[0]
        return UsageError(
            f"{key}: {name} needs Python code that comes with it, which is not run unasked: read it, then "
            f"set {section}.trust_remote_code true"
        )
    if isinstance(error, SafetensorError):
        return SurroundingsError(f"{key}: {_damage(name, revision) or first_line(error)}")
    if any(words in text for words in _NO_SAFETENSORS):
        return SurroundingsError(
            f"{key}: {name} has no model.safetensors; pickled weights (.bin) can run code when they are read "
            "and are refused: name a revision that has safetensors, or convert it where you trust it"
        )
    return None


def _about_hub(error: Exception, name: str, revision: str | None, key: str) -> UserError | None:
    found = kinds(error)
    if is_gated(error):
        return SurroundingsError(f"{key}: {name}: {GRANT}")
    if "RevisionNotFoundError" in found:
        return SurroundingsError(f"{key}: {name}: there is no revision {revision!r} of it on the hub")
    if "RepositoryNotFoundError" in found:
        return SurroundingsError(
            f"{key}: there is no folder {name!r} here and no such model on the hub (a private one needs "
            "`hf auth login`)"
        )
    if is_refused(error):
        return SurroundingsError(
            f"{key}: {name}: the hub refuses the token: `hf auth login` again, or set HF_TOKEN"
        )
    if is_unreachable(error):
        return SurroundingsError(
            f"{key}: {name}: the hub does not give it now ({_inmost(error)}); run again later (files that "
            "came whole are kept), or name a folder"
        )
    return None


def _closed_file(name: str) -> Path | None:
    """Return a file of a folder that may not be read: safetensors says of one that it is not there."""
    for file in sorted(Path(name).glob("*.*")):
        try:
            with file.open("rb"):
                continue
        except PermissionError:
            return file
        except OSError:
            continue
    return None


def _inmost(error: BaseException) -> str:
    """Return the first line of what an error was raised from: what the server said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _damage(name: str, revision: str | None) -> str:
    """Return which weight file is damaged, how, and what to do; nothing where none is."""
    for file in sorted(_folder(name, revision).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                continue
        except (SafetensorError, OSError) as error:
            with file.open("rb") as content:
                if content.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    return f"{file} is a pointer of git-lfs instead of the weights: run `git lfs pull` there"
            size = file.stat().st_size
            return f"{file} is damaged ({size:,} bytes: {first_line(error)}): delete it and fetch it again"
    return ""


def _folder(name: str, revision: str | None) -> Path:
    if not Path(name).is_dir():
        from huggingface_hub import snapshot_download

        with suppress(OSError, ValueError):
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
    return Path(name)
