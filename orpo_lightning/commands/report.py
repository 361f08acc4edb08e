"""`report`: the page of a finished run, or of several side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HELP = """usage: orpo-lightning report RUN [RUN ...] [--out FILE] [--json]

Writes one page about a run: what it came to, settings, data, curves with intervals, answers, speed, warnings,
and how to use its weights. Every training run writes it by itself when it ends. Several runs are set side by
side: settings that differ, curves over each other, and each run against the first one on the held-out pairs
that both know.

arguments:
  RUN         folder of a run, such as runs/mistral; of older runs the curves are read from tb/

options:
  --out FILE  where to write the page (of one run RUN/report.html, of several comparison.html)
  --json      print the numbers as JSON; a page is written with --out alone

examples:
  orpo-lightning report runs/quickstart
  orpo-lightning report runs/mistral runs/mistral-dora --out compare.html
"""


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _report)


def _report(args: list[str]) -> int:
    from orpo_lightning.commands.words import Words

    words = Words("report")
    words.add_argument("runs", metavar="RUN", nargs="+")
    words.add_argument("--out", default=None)
    words.add_argument("--json", action="store_true")
    asked = words.parse_args(args)
    _make(asked.runs, None if asked.out is None else Path(asked.out).expanduser(), asked.json)
    return 0


def _make(names: list[str], out: Path | None, as_json: bool) -> None:
    from orpo_lightning.observing.comparison import comparison
    from orpo_lightning.observing.run_files import read_run

    runs = [read_run(name) for name in names]
    from orpo_lightning.observing.defaults import defaults
    from orpo_lightning.observing.summary import summary

    summaries = [summary(run, defaults()) for run in runs]
    compared = comparison(runs) if len(runs) > 1 else None
    if out is None and not as_json:
        out = Path("comparison.html") if compared else runs[0].folder / "report.html"
    if out is not None:
        from orpo_lightning.pages.files import write_text
        from orpo_lightning.pages.report_page import report_page

        write_text(out, report_page(runs, summaries, compared))
    if as_json:
        print(json.dumps(_numbers(summaries, compared), indent=1, ensure_ascii=False, allow_nan=False))
        return
    for line in _lines(summaries, compared):
        print(line)
    print(f"report: {out}")


def _numbers(summaries: list[dict[str, Any]], compared: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a script reads: `runs` in the order given, `comparison` of several."""
    return {"runs": summaries, "comparison": compared}


def _lines(summaries: list[dict[str, Any]], compared: dict[str, Any] | None) -> list[str]:
    """Return what the runs came to, for the terminal."""
    labels = compared["runs"] if compared else [summary["name"] for summary in summaries]
    found = [
        f"{label}: {one['kind']}: {one['sentence']} {one['advice']}".rstrip()
        for label, summary in zip(labels, summaries, strict=True)
        for one in summary["findings"]
    ]
    return found + [pair["sentence"] for pair in (compared or {}).get("paired", [])]
