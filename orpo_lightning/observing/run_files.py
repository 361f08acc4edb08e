"""The files that a run leaves in its folder, read as they are: any of them may be missing or cut short."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import yaml

from orpo_lightning.errors import UsageError
from orpo_lightning.masking import mask
from orpo_lightning.observing.files import read_lines
from orpo_lightning.observing.record import RECORD, read_record

CONFIG, CURVES, PAIRS = "config.yaml", "curves.jsonl", "pairs.npz"
SAMPLES, EVENTS = "samples.jsonl", "tb"
_ADAPTERS = ("adapter", "adapter-best")


class RunFiles(NamedTuple):
    """What is known of a run."""

    folder: Path
    name: str
    config: Mapping[str, Any] = {}
    """Its config.yaml, secrets masked."""
    curves: Sequence[Mapping[str, Any]] = ()
    """{"step", name: value, …}, steps rising."""
    pairs: Mapping[str, Any] | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    record: Mapping[str, Any] = {}
    weights: Sequence[str] = ()
    """Which of the folders with trained weights are there."""
    notes: Sequence[str] = ()
    """What was not there, and what stands in its place."""


def read_run(name: str | Path) -> RunFiles:
    """Read what there is of a run.

    Raises:
        UsageError: it is no folder of a run.
    """
    folder = Path(name).expanduser()
    known = (CONFIG, CURVES, PAIRS, SAMPLES, RECORD, EVENTS)
    if not any((folder / file).exists() for file in known):
        found = "no such folder" if not folder.is_dir() else "none of them"
        raise UsageError(f"{name}: expected the folder of a run ({', '.join(known)}), found {found}")
    curves, notes = _curves(folder)
    pairs, damage = _pairs(folder / PAIRS)
    return RunFiles(
        folder=folder,
        name=folder.resolve().name,
        config=mask(_config(folder / CONFIG)),
        curves=sorted(curves, key=lambda row: row["step"]),
        pairs=pairs,
        samples=[row for row in read_lines(folder / SAMPLES) if "prompt" in row],
        record=read_record(folder / RECORD),
        weights=[one for one in _ADAPTERS if (folder / one).is_dir()],
        notes=[*notes, *damage],
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if not path.is_file():
        return None, []
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}, []
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        return None, [f"{path.name} cannot be read ({type(error).__name__}): left out"]


def _curves(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what was logged: of runs before curves.jsonl, from the event files."""
    rows = [row for row in read_lines(folder / CURVES) if isinstance(row.get("step"), int)]
    if rows or not (folder / EVENTS).is_dir():
        return rows, []
    try:
        found = _events(folder / EVENTS)
    except ImportError:
        return [], [f"{CURVES} is not there, and reading event files takes the package tensorboard"]
    return found, [f"{CURVES} is not there: the curves are those of TensorBoard's event files ({EVENTS}/)"]


def _events(folder: Path) -> list[dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It tells of every kill that the run survived; what was logged twice is seen to below.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, Any]] = {}
    for name in events.Tags()["scalars"]:
        # What a run that was killed logged twice: the resumed run's count.
        for event in events.Scalars(name):
            rows.setdefault(event.step, {"step": event.step})[name] = event.value
    return list(rows.values())


def last_step(run: RunFiles) -> int | None:
    """Return how many optimizer steps were done, as far as it is known."""
    steps = run.record.get("steps")
    return steps if isinstance(steps, int) else max((int(row["step"]) for row in run.curves), default=None)


class Value(NamedTuple):
    """A logged value with the ends of its 95 % interval, where there is one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


def values(run: RunFiles, name: str) -> list[Value]:
    """Return all that was logged of a quantity such as `val/loss`; the last of a step counts."""
    stage, _, rest = name.partition("/")
    wanted = (name, f"{stage}_ci_low/{rest}", f"{stage}_ci_high/{rest}")
    found: dict[int, list[float | None]] = {}
    for row in run.curves:
        for index, key in enumerate(wanted):
            if row.get(key) is not None:
                found.setdefault(int(row["step"]), [None] * 3)[index] = float(row[key])
    return [
        Value(step, parts[0], _finite(parts[1]), _finite(parts[2]))
        for step, parts in sorted(found.items())
        if parts[0] is not None
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def names(run: RunFiles) -> list[str]:
    """Return all quantities that were logged, without the ends of intervals."""
    found = {name for row in run.curves for name in row if "/" in name}
    return sorted(name for name in found if "_ci_" not in name.partition("/")[0])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as `model.optimizer.init_args.lr`: value; a list is a value."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def is_place(key: str) -> bool:
    """Tell whether a setting says where a run is, not how it trains."""
    places = ("run_dir", "resume", "config", "trainer.default_root_dir", "trainer.logger")
    return key in places or key.startswith("trainer.logger.")
