"""Files of a model, in a folder or a repository of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orpo_lightning.base_errors import explain_base, is_about_files
from orpo_lightning.hub_access import with_retries

ADAPTER_CONFIG = "adapter_config.json"
TRAINING = "training.json"
"""Beside an adapter: the settings of its training that decide how it is loaded."""
T = TypeVar("T")


def adapter_config(name: str) -> dict[str, Any] | None:
    """Return the adapter_config.json of a folder or hub id; None where there is none.

    Raises:
        SurroundingsError: the hub cannot be reached, or has nothing of this name.
    """
    return json_of(name, ADAPTER_CONFIG)


def json_of(name: str, file: str) -> dict[str, Any] | None:
    """Return what a file of JSON says; None where a folder or repository has none of this name."""
    path = file_of(name, file)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def file_of(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return a file of a folder or of a repository of the hub; None where it has none of this name."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers.utils import cached_file

    # Offline, what lies in the cache is all there is: of a file that is not asked for, nothing was kept.
    reach = {"_raise_exceptions_for_connection_errors": not HF_HUB_OFFLINE}

    def fetch() -> Any:
        return cached_file(
            name, file, revision=revision, _raise_exceptions_for_missing_entries=False, **reach
        )

    path = fetched(fetch, name)
    return None if path is None else Path(path)


def mark_of(name: str, config: str, revision: str | None = None) -> list[Any]:
    """Return what tells weights from others that go by the same name, without reading them.

    Of a folder it is names, sizes and times of its files of weights, of a repository of the hub the commit.

    Args:
        name: folder or hub id.
        config: a file that the repository has.
        revision: of the repository.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors"))
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    path = file_of(name, config, revision)
    return [None if path is None else path.parent.name]  # the cache has a folder for each commit


def evaluation_of(weights: str) -> str:
    """Return what the evaluation of a run's weights is called: of others than the last ones, after them."""
    name = Path(weights).name
    return "evaluation" if name == "adapter" else f"evaluation-{name}"


def fetched(fetch: Callable[[], T], name: str) -> T:
    """Return what `fetch` gets of a model of the hub, tried again where that may help.

    Raises:
        SurroundingsError: the hub cannot be reached, or has nothing of this name.
    """
    try:
        return with_retries(fetch, name)
    except Exception as error:
        if not is_about_files(error):
            raise
        raise explain_base(error, name, None, "the model") from error
