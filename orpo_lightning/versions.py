"""Which versions of packages are installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def installed(name: str) -> str | None:
    """Return the version of a package; None where it is not installed (or used from a source tree)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions_of(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, in this order."""
    return {name: version for name in names if (version := installed(name)) is not None}
