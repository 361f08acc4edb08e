"""Disks, and the hub: whether it answers, and whether there is a token for it. Nothing else is sent."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from orpo_lightning.checkup.base import Check
from orpo_lightning.full_disk import free_bytes

_LITTLE, _TOO_LITTLE = 20e9, 1e9
_SECONDS = 3.0


def disks() -> Iterator[Check]:
    """Look at the folders that a run writes to."""
    from orpo_lightning.data.cache import default_cache_dir

    places = {"here": Path.cwd(), "hub cache": hub_folder(), "data cache": default_cache_dir()}
    for name, folder in places.items():
        yield disk(f"disk, {name}", folder)


def disk(name: str, folder: Path) -> Check:
    """Look at what is free where a folder is, and whether it can be written to."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = free_bytes(folder)
    found = f"{free / 1e9:,.1f} GB free in {folder}"
    if not os.access(there, os.W_OK):
        return Check(
            name, "error", f"{there} cannot be written to", "set HF_HOME, XDG_CACHE_HOME or --run_dir"
        )
    if free < _TOO_LITTLE:
        return Check(name, "error", found, "make room: a 7B model is 15 GB")
    if free < _LITTLE:
        return Check(name, "warning", found, "a 7B model is 15 GB; HF_HOME and --run_dir take other disks")
    return Check(name, "ok", found)


def hub_folder() -> Path:
    """Return where models and data sets are kept that come from the hub."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def hub() -> Iterator[Check]:
    """Ask the hub for its front page's header, without a token, and look whether there is one."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield Check(
            "hub", "warning", "HF_HUB_OFFLINE is set: only what is in the cache", "unset it to download"
        )
    else:
        yield _answer(address)
    yield Check("hub token", "ok", token_words())


def _answer(address: str) -> Check:
    start = time.perf_counter()
    asked = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # an answer as well
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        advice = "name folders as model and data, or set a proxy (HTTPS_PROXY), or HF_ENDPOINT for a mirror"
        return Check("hub", "warning", f"{address} does not answer ({why})", advice)
    return Check("hub", "ok", f"{address} answers in {1000 * (time.perf_counter() - start):.0f} ms")


def token_words() -> str:
    """Return where the hub's token comes from; the token itself is nobody's business."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return f"in {name}"
    file = Path(os.environ.get("HF_TOKEN_PATH") or hub_folder().parent / "token").expanduser()
    if file.is_file():
        return f"in {file}"
    return "none: open models and data need none; for others `hf auth login`"
