"""The page of `inspect`: what is wrong with the data and what to do, then everything that was counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from orpo_lightning.pages.frame import render
from orpo_lightning.pages.words import counted, number, percent

Report = Mapping[str, Any]


class Place(NamedTuple):
    """Where something suspicious was found: the split or two splits, in words, and the part that shows it."""

    split: str
    words: str
    anchor: str


def inspect_page(report: Report) -> str:
    """Return the HTML page of a report: one file that needs nothing else.

    Args:
        report: the content of report.json; parts that are missing or null are left out of the page.
    """
    noticed = remarks(report)
    return render(
        "inspect.html.jinja",
        report=report,
        maker=f"{report.get('package') or ''} · inspect",
        title=title(report),
        headline=headline(report),
        failed=[(check, _places(report, noticed, str(check.get("name")))) for check in failed(report)],
        remarks=[(name, places) for name, places in noticed.items() if places],
        figures=figures(report),
        keys=keys(report),
    )


def keys(report: Report) -> dict[str, str]:
    """Return the id on the page of each split: its name may be anything."""
    return {name: f"split{index}" for index, name in enumerate(splits(report))}


def splits(report: Report) -> Mapping[str, Report]:
    """Return the splits by name, the one trained on first."""
    return {name: split or {} for name, split in (report.get("splits") or {}).items()}


def title(report: Report) -> str:
    """Return what was inspected: the sources of the first split."""
    first = next(iter(splits(report).values()), {})
    names = [str(source.get("source")) for source in first.get("sources") or ()]
    if not names:
        return "Preference data"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def failed(report: Report) -> list[Report]:
    """Return the checks that were not passed."""
    checks = (report.get("verdict") or {}).get("checks") or ()
    return [check for check in checks if not check.get("passed")]


def headline(report: Report) -> tuple[str, str]:
    """Return how it stands, `failed`, `remarks` or `passed`, and the same as a sentence."""
    first = next(iter(splits(report).values()), {})
    wrong, noticed = failed(report), remarks(report)
    if (first.get("rows") or {}).get("kept") == 0:
        return "failed", "No row is left to train on."
    if wrong or (report.get("verdict") or {}).get("passed") is False:
        return "failed", f"Fix {counted(len(wrong) or 1, 'thing')} before training."
    if noticed:
        are = "is" if len(noticed) == 1 else "are"
        return "remarks", f"Ready to train. {counted(len(noticed), 'thing')} {are} worth a look."
    return "passed", "Ready to train."


def remarks(report: Report) -> dict[str, list[Place]]:
    """Return what is suspicious and stops nothing, by name, with all the splits it was found in."""
    found: dict[str, list[Place]] = {}

    def note(kind: str, split: str, count: Any, anchor: str) -> None:
        found.setdefault(kind, []).append(Place(split, f"{number(count)} in {split}", anchor))

    ids = keys(report)
    for name, split in splits(report).items():
        for item in split.get("suspicious") or ():
            if item.get("rows"):
                note(str(item.get("kind")), name, item["rows"], f"{ids[name]}-suspicious")
        if split.get("hints"):
            note("hints about the labels", name, len(split["hints"]), f"{ids[name]}-hints")
    for between, shared in (report.get("across") or {}).items():
        if shared and shared.get("shared_prompts"):
            both = between.replace("_", " and ")
            note("prompts that two splits share", both, shared["shared_prompts"], "across")
    return found


def _places(report: Report, noticed: dict[str, list[Place]], check: str) -> list[Place]:
    """Return where the page shows a failed check; what is no longer there was left out with its rows."""
    there = taken(noticed, check)
    split = check.rpartition(": ")[0]
    left_out = ((splits(report).get(split) or {}).get("rows") or {}).get("left_out")
    if there or not left_out:
        return there
    return [Place(split, f"{number(left_out)} left out of {split}", f"{keys(report)[split]}-rows")]


def taken(noticed: dict[str, list[Place]], check: str) -> list[Place]:
    """Take out and return the places that a failed check is about: `contradictory pairs` or `train: …`."""
    split, _, kind = check.rpartition(": ")
    places = noticed.get(kind, [])
    own = [place for place in places if split in ("", place.split)]
    noticed[kind] = [place for place in places if place not in own]
    return own


def figures(report: Report) -> list[tuple[str, str]]:
    """Return the few numbers that describe the training data, each with its name."""
    first = next(iter(splits(report).values()), {})
    rows, pair = (first.get("rows") or {}), (first.get("lengths") or {}).get("pair") or {}
    limit: Report = next((one for one in first.get("limits") or () if one.get("is_set")), {})
    epoch: Report = next(iter(report.get("epoch") or ()), {})
    wins = (first.get("longer") or {}).get("longer_wins_accuracy")
    found = [
        (f"of {number(rows.get('read'))} rows kept", number(rows.get("kept")), rows.get("kept")),
        ("tokens in the median pair", number(pair.get("median")), pair.get("median")),
        (
            f"of the pairs are over {number(limit.get('max_length'))} tokens",
            percent(limit.get("share")),
            limit.get("share"),
        ),
        ("right if the longer answer wins", percent(wins), wins),
        ("optimizer steps an epoch", number(epoch.get("steps")), epoch.get("steps")),
        ("of a batch is padding", percent(epoch.get("padded_share")), epoch.get("padded_share")),
    ]
    return [(name, words) for name, words, value in found if value is not None]
