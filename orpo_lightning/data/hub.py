"""Data sets of the hub: found and downloaded by `datasets`, and read so that every value stays what it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.data.arrow_reader import rows_at_a_time, rows_of
from orpo_lightning.data.files import nearest
from orpo_lightning.data.hub_errors import explain, is_unreachable
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.readers import READERS, ending_of, read_file
from orpo_lightning.data.rows import Row
from orpo_lightning.errors import DataError, SurroundingsError, UserError
from orpo_lightning.hub_access import with_retries

_FILE = re.compile(r"hf://datasets/(?P<name>[^/]+/[^/@]+)@(?P<commit>[^/]+)/(?P<path>.+)")
_PART = re.compile(r"(?P<split>[^\[]+)\[(?P<start>\d*):(?P<stop>\d*)\]")
_OF_EVERY_CONFIG = {"name", "version", "data_dir", "data_files", "description"}


class HubName(NamedTuple):
    """A data set of the hub and one of its splits."""

    name: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """What its rows are placed under: `owner/name/config:split`."""
        return f"{self.name}{f'/{self.config}' if self.config else ''}:{self.split}"


class _File(NamedTuple):
    """A file of the data set that lies in the hub's cache."""

    name: str
    path: str


def read_hub(place: HubName) -> Iterator[Row | LeftOut]:
    """Yield the rows of a split.

    Raises:
        DataError: there is no such data set, config, split or revision, or it cannot be read.
        SurroundingsError: the hub cannot be reached, or access was not granted.
    """
    found = _open(place)
    if isinstance(found, list):
        rows = (row for file in found for row in read_file(Path(file.path), f"{place.name}/{file.name}"))
        _, start, stop = _part_of(place.split)
        yield from islice(rows, start, stop)
    else:
        size = rows_at_a_time(found.data.nbytes, len(found.data))
        yield from rows_of(found.with_format("arrow").iter(batch_size=size), place.label)


def hub_fingerprint(place: HubName) -> str:
    """Return a hash of what a split holds: of its files, or the one that `datasets` has for it.

    Raises:
        DataError: as `read_hub`.
        SurroundingsError: as `read_hub`.
    """
    found = _open(place)
    if not isinstance(found, list):
        return f"{place.label}:{found._fingerprint}"
    digest = hashlib.sha256()
    for file in found:
        with Path(file.path).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{place.label}:{digest.hexdigest()}"


@cache  # fingerprint and rows must be of one revision, even if the hub's moves on between the two
def _open(place: HubName) -> Any:
    """Return the files of a split of JSON or CSV files; of any other the `datasets.Dataset`.

    `datasets` would make times of texts like 2024-01-01, numbers of the texts in CSV and of "5" in a column
    of mixed types, and nulls of missing keys; our own readers do not.
    """
    import datasets

    known = _recorded(place)
    if known and datasets.config.HF_HUB_OFFLINE:
        return known
    try:
        return with_retries(lambda: _found(place, known), place.name)
    except UserError:
        raise
    except Exception as error:
        if known and is_unreachable(error):
            return known
        explained = _unknown_config(error, place) or explain(
            error, place.name, place.revision, _meant(Path(place.name))
        )
        if explained is None:
            raise
        raise explained from error


def _found(place: HubName, known: list[_File] | None) -> Any:
    import datasets

    builder = datasets.load_dataset_builder(place.name, place.config, revision=place.revision)
    return known if known and _is_cached(builder) else _split_of(builder, place)


def _part_of(split: str) -> tuple[str, int, int | None]:
    """Return the split and the rows that are meant: of train[100:200] train, 100 and 200."""
    match = _PART.fullmatch(split)
    if match is None:
        return split, 0, None
    return match["split"], int(match["start"] or 0), int(match["stop"]) if match["stop"] else None


def _meant(path: Path) -> str:
    return nearest(path) if path.parent.is_dir() else ""


def _split_of(builder: Any, place: HubName) -> Any:
    if _is_cached(builder) and place.revision not in (None, builder.hash):
        raise SurroundingsError(
            f"{place.name}: the hub cannot be reached, and what is cached may be of another revision "
            f"than {place.revision!r}"
        )
    splits = [str(name) for name in builder.config.data_files or builder.info.splits or ()]
    if splits and re.split(r"[\[+]", place.split)[0] not in splits:
        raise DataError(
            f"{place.name}: there is no split {place.split!r}; its splits are {', '.join(splits)}: write "
            f"{place._replace(split=splits[0]).label}, for example"
        )
    files = _download_text(builder, place)
    if files:
        _record(place, files)
        return files
    builder.download_and_prepare()
    return builder.as_dataset(split=place.split)


def _is_cached(builder: Any) -> bool:
    """Tell whether `datasets` has not asked the hub, but found something in its own cache."""
    return bool(builder.name == "cache")


def _download_text(builder: Any, place: HubName) -> list[_File]:
    """Download the files of the split, if they are JSON or CSV in the form that we read; else do nothing."""
    from huggingface_hub import hf_hub_download

    config = builder.config
    found = [_FILE.fullmatch(str(url)) for url in (config.data_files or {}).get(_part_of(place.split)[0], ())]
    matches = [match for match in found if match and match["name"] == place.name]
    if builder.name not in ("json", "csv") or not matches or len(matches) < len(found):
        return []
    settings = {field.name for field in dataclasses.fields(config)} - _OF_EVERY_CONFIG
    usual = type(config)()
    if any(getattr(config, name) != getattr(usual, name) for name in settings):  # another separator, say
        return []
    if any(ending_of(match["path"]) not in READERS for match in matches):
        return []
    return [
        _File(
            match["path"],
            hf_hub_download(place.name, match["path"], repo_type="dataset", revision=match["commit"]),
        )
        for match in matches
    ]


def _unknown_config(error: Exception, place: HubName) -> DataError | None:
    """Return the error that lists the configs there are, where one was to be named and was not."""
    import datasets

    if not isinstance(error, ValueError) or "onfig" not in str(error):
        return None
    try:
        names = datasets.get_dataset_config_names(place.name, revision=place.revision)
    except Exception:  # the first error says more than this one
        return None
    if place.config in names:
        return None
    found = f"there is no config {place.config!r}" if place.config else "it has several configs"
    example = place._replace(config=names[0]).label
    return DataError(
        f"{place.name}: {found}; its configs are {', '.join(names)}: write {example}, for example"
    )


def _record_path(place: HubName) -> Path:
    import datasets

    name = hashlib.sha256(json.dumps(place).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "orpo_lightning" / f"{name}.json"


def _record(place: HubName, files: list[_File]) -> None:
    """Write down which files a split has: without a network nobody else could tell."""
    path = _record_path(place)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(files), encoding="utf-8")
        os.replace(temporary, path)


def _recorded(place: HubName) -> list[_File] | None:
    try:
        files = [_File(*file) for file in json.loads(_record_path(place).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return None
    return files if all(Path(file.path).is_file() for file in files) else None
