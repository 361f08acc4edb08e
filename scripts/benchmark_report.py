"""What every benchmark writes and prints alike: spreads over the runs, the machine in a line, JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

QUIET = 0.05
"""Share of the cores' time that others may take before a figure is called disturbed."""


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Return min, median and max, rounded."""
    found = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def share_of_others(results: list[dict[str, Any]], cores: int) -> float:
    """Return which share of the cores' time other processes used, in the result that was disturbed most.

    The kernel counts in hundredths of a second: what took less than a second says nothing.
    """
    measured = [result for result in results if result["seconds"] > 1]
    shares = (each["cpu_seconds_of_others"] / (each["seconds"] * cores) for each in measured)
    return round(max(shares, default=0.0), 2)


def header(found: dict[str, Any]) -> str:
    """Return date, machine and versions as a line."""
    facts = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    threads = f"{facts['cores_used']} cores and {facts['threads']} threads for each side"
    gpu = f", {facts['gpu']['name']}" if facts.get("gpu") else ""
    return f"{facts['date'][:10]}, {facts['cpu']}{gpu}, {threads}; Python {facts['python']}, {versions}"


def disturbed(share: float) -> str | None:
    """Return a warning where others were at work on the same cores."""
    if share <= QUIET:
        return None
    return f"NOT a quiet machine: other processes took up to {share:.0%} of the cores' time meanwhile"


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write figures to a file."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
