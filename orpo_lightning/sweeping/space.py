"""The search space of a sweep: which keys of `fit` it sets, and to what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orpo_lightning.errors import UsageError

_EXPECTED = "a list of values, or {low: …, high: …} with log: true where it spans powers of ten"


class Range(NamedTuple):
    """Any number from `low` to `high`, both included; whole ones where both are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Choices(NamedTuple):
    """One of some values; a mapping among them sets several keys at once."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """The values as a storage can keep them, and as a page shows them."""
        return tuple(label(value) for value in self.values)


Space = dict[str, Range | Choices]


def label(value: Any) -> Any:
    """Return a value as a storage can keep it: what is no plain value as text."""
    if isinstance(value, Mapping):
        return words(value)
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else json.dumps(value)


def read_space(file: str | Path) -> Space:
    """Return what a YAML file of keys and their values says.

    Raises:
        UsageError: it cannot be read, or says nothing that can be searched.
    """
    path = Path(file).expanduser()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--search {file}: cannot be read ({getattr(error, 'strerror', error)})") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--search {file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"--search {file}: expected keys of `fit`, each with {_EXPECTED}")
    return {str(key): _values(f"--search {file}: {key}", value) for key, value in content.items()}


def _values(where: str, value: Any) -> Range | Choices:
    if isinstance(value, Mapping):
        return _range(where, value)
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: expected {_EXPECTED}, found {value!r}")
    choices = Choices(tuple(_number(item) for item in value))
    if len(set(map(repr, choices.labels))) < len(choices.labels):
        raise UsageError(f"{where}: expected different values, found {value}")
    return choices


def _range(where: str, value: Mapping[str, Any]) -> Range:
    low, high = (_number(value.get(name)) for name in ("low", "high"))
    are_numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (low, high))
    if not are_numbers or not set(value) <= {"low", "high", "log"}:
        raise UsageError(f"{where}: expected {_EXPECTED}, found {dict(value)}")
    found = Range(low, high, log=bool(value.get("log", False)))
    if found.low >= found.high:
        raise UsageError(f"{where}: expected low below high, found {found.low} and {found.high}")
    if found.log and found.low <= 0:
        raise UsageError(f"{where}: expected low above 0 with log: true, found {found.low}")
    return found


def _number(value: Any) -> Any:
    """Return a text such as 1e-5, which YAML takes for one, as the number it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def settings(space: Space, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `fit` and their values.

    Args:
        space: what was searched.
        chosen: of each of its keys a number, or the label of one of its values.
    """
    found: dict[str, Any] = {}
    for key, values in space.items():
        value = chosen[key]
        if isinstance(values, Choices):
            value = values.values[values.labels.index(value)]
        found |= value if isinstance(value, Mapping) else {key: value}
    return found


def flags(values: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that set these keys."""
    texts = ((key, value if isinstance(value, str) else json.dumps(value)) for key, value in values.items())
    return [f"--{key}={text}" for key, text in texts]


def grid(space: Space) -> list[dict[str, Any]] | None:
    """Return all combinations where every key has a list of values, else None."""
    lists = [values.labels for values in space.values() if isinstance(values, Choices)]
    if len(lists) < len(space):
        return None
    return [dict(zip(space, labels, strict=True)) for labels in product(*lists)]


def corners(space: Space) -> list[dict[str, Any]]:
    """Return settings in which each end of each range, and each value of each list, stands at least once."""
    ends = [
        [values.low, values.high] if isinstance(values, Range) else list(values.labels)
        for values in space.values()
    ]
    most = max(map(len, ends))
    picks = ([one[min(number, len(one) - 1)] for one in ends] for number in range(most))
    return [settings(space, dict(zip(space, pick, strict=True))) for pick in picks]


def words(values: Mapping[str, Any]) -> str:
    """Return settings for a line of the terminal, each key by its last part."""
    named = zip(short(values), values.values(), strict=True)
    return ", ".join(f"{name} {_shown(value)}" for name, value in named)


def short(keys: Any) -> list[str]:
    """Return each key's last part, longer where two would be the same."""
    names = list(keys)
    last = [name.rpartition(".")[2] for name in names]
    return [one if last.count(one) == 1 else name for one, name in zip(last, names, strict=True)]


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
