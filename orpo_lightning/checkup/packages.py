"""Installed versions, against what the package needs and what it is tested with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from orpo_lightning.checkup.base import Check
from orpo_lightning.versions import installed

_OPTIONAL = {
    "sweep": "sweep",
    "galore": "GaLore's optimizers",
    "flash": "flash attention",
    "deepspeed": "DeepSpeed",
}
CONSTRAINTS = Path(__file__).parent.parent.parent / "constraints.txt"


def versions() -> Iterator[Check]:
    """Look at every package that is needed, and which extras are there."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in metadata.requires("orpo-lightning") or ()]
    tested = tested_versions()
    found, wrong = [], []
    for one in needed:
        if one.marker is not None:
            continue
        version = installed(one.name)
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name}{one.specifier} ({version or 'not installed'})")
        public = version.partition("+")[0] if version else version  # torch 2.13.0+cpu is torch 2.13.0
        as_tested = tested.get(one.name.lower(), public) == public
        found.append(one.name if as_tested else f"{one.name} {version}")
    if wrong:
        yield Check("packages", "error", f"needed: {', '.join(wrong)}", "pip install -c constraints.txt -e .")
    else:
        yield _others([name for name in found if " " in name], len(found), bool(tested))
    yield Check("extras", "ok", _extras(needed))


def _others(others: list[str], count: int, known: bool) -> Check:
    if not known:
        return Check("packages", "ok", f"all {count} are new enough")
    if others:
        found = f"all {count} are new enough, not the tested versions: {', '.join(others)}"
        return Check(
            "packages", "warning", found, "should anything be odd: pip install -c constraints.txt -e ."
        )
    return Check("packages", "ok", f"all {count} in the versions they are tested with")


def _extras(needed: Sequence[Any]) -> str:
    there = []
    for extra, words in _OPTIONAL.items():
        own = [one for one in needed if f'extra == "{extra}"' in str(one.marker)]
        if own and all(installed(one.name) for one in own):
            there.append(f"{extra} ({words})" if extra != words else extra)
    missing = [extra for extra in _OPTIONAL if not any(one.startswith(extra) for one in there)]
    return f"{', '.join(there) or 'none'}; not installed: {', '.join(missing) or 'none'}"


def tested_versions() -> dict[str, str]:
    """Return the versions of constraints.txt by name, where it is at hand: in a clone."""
    if not CONSTRAINTS.is_file():
        return {}
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.strip().lower(): version.strip() for name, _, version in pairs}
