"""From what a user wrote to the files that are meant: one, those of a glob, those of a folder."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path

from orpo_lightning.data.readers import KNOWN_ENDINGS, READERS, ending_of
from orpo_lightning.errors import DataError, UsageError

_SHOWN = 5
# What `datasets` writes beside the rows.
_OF_A_DATASET, _OF_ITS_SPLITS = "state.json", "dataset_dict.json"
# Words in the names of files, and the split they speak of.
_SPLIT_OF = {"train": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
_ABOUT_DATA = {_OF_A_DATASET, _OF_ITS_SPLITS, "dataset_info.json", "dataset_infos.json"}


def find_files(name: str, split: str | None = None) -> list[Path] | None:
    """Return the files that a name stands for, in the order they are read; None where there is nothing there.

    Args:
        name: a file, a folder or a glob.
        split: of a folder that a `datasets.DatasetDict` was saved to.

    Raises:
        DataError: what is there cannot be used.
        UsageError: a split of something that has none.
    """
    path = Path(name).expanduser()
    if is_there(path):
        if path.is_dir():
            return _files_of_folder(path, name, split)
        _refuse_split(name, split)
        if ending_of(path.name) not in READERS:
            found = "".join(path.suffixes[-2:]) or path.name
            raise DataError(f"{name}: expected a name ending in {KNOWN_ENDINGS}, found {found!r}")
        return [path]
    if not glob.has_magic(name):
        return None
    _refuse_split(name, split)
    matched = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
    files = _usable(matched)
    if not files:
        found = f"; it matches {_listed(other.name for other in matched)}" if matched else ""
        raise DataError(f"{name}: the pattern matches no file ending in {KNOWN_ENDINGS}{found}")
    return files


def nearest(path: Path) -> str:
    """Return a suggestion: what lies in the same folder and is called most like the path that is missing."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f" (and no folder {path.parent})"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def is_there(path: Path) -> bool:
    """Tell whether there is a file or folder at a path.

    Raises:
        DataError: it cannot be told.
    """
    try:
        return path.is_file() or path.is_dir()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _files_of_folder(path: Path, name: str, split: str | None) -> list[Path]:
    try:
        content = sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror}") from error
    names = {other.name for other in content}
    if _OF_ITS_SPLITS in names:
        return _files_of_folder(path / _chosen_split(path, name, split), name, None)
    _refuse_split(name, split)
    if _OF_A_DATASET in names:  # it may hold results of `datasets.Dataset.map` besides
        return [path / str(file["filename"]) for file in _read_list(path / _OF_A_DATASET, "_data_files")]
    files = _usable(content)
    if not files:
        folders = _listed(other.name for other in content if _holds_data(other))
        hint = f"; these folders in it do, and are not looked into: {folders}: name one" if folders else ""
        raise DataError(f"{name}: the folder holds no file ending in {KNOWN_ENDINGS}{hint}")
    _refuse_several_splits(name, files)
    return files


def _holds_data(path: Path) -> bool:
    try:
        return path.is_dir() and not path.name.startswith(".") and bool(_usable(path.iterdir()))
    except OSError:  # it may not be entered
        return False


def _refuse_several_splits(name: str, files: Iterable[Path]) -> None:
    """Stop where a folder's files are named after train and after other splits: a test would be trained on.

    Without one of train, the words may be of anything: notes on a dev team, on unit tests.
    """
    found: dict[str, list[str]] = {}
    for path in files:
        words = [word for word in re.findall("[a-z]+", path.name.lower()) if word in _SPLIT_OF]
        if words:
            split = _SPLIT_OF["train" if "train" in words else words[0]]
            found.setdefault(split, []).append(path.name)
    if "train" in found and len(found) > 1:
        splits = ", ".join(f"{split} ({_listed(names)})" for split, names in found.items())
        raise DataError(
            f"{name}: expected a folder of one split, found files of {splits}; name those of one, such as "
            f"'{Path(name) / '*train*'}', or all of them, '{Path(name) / '*'}'"
        )


def _chosen_split(path: Path, name: str, split: str | None) -> str:
    splits = [str(one) for one in _read_list(path / _OF_ITS_SPLITS, "splits")]
    chosen = split or "train"
    if chosen not in splits:
        raise DataError(f"{name}: there is no split {chosen!r}; its splits are {', '.join(splits) or 'none'}")
    return chosen


def _read_list(path: Path, key: str) -> list[dict[str, object]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected what `datasets` writes there: {error}") from error
    return list(values)


def _usable(paths: Iterable[Path]) -> list[Path]:
    return [
        path
        for path in paths
        if path.is_file()
        and not path.name.startswith(".")
        and path.name not in _ABOUT_DATA
        and ending_of(path.name) in READERS
    ]


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = [f"{len(all_names) - _SHOWN} more"] if len(all_names) > _SHOWN else []
    return ", ".join(all_names[:_SHOWN] + more)


def _refuse_split(name: str, split: str | None) -> None:
    if split is not None:
        raise UsageError(
            f"{name}: split {split!r} is for data sets of the hub and folders of `DatasetDict.save_to_disk`; "
            "name the file of that split instead"
        )
