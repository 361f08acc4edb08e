"""The data benchmark: from a file of rows to the first batch, against TRL and the tokenizer's own speed."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmark_process import machine, run_fresh
from benchmark_report import disturbed, header, share_of_others, spread, write_json
from benchmark_rows import numbered, read_pairs, write_rows

SIDES = ("ours", "trl", "trl2", "encode")
_CHILD = Path(__file__).with_name("benchmark_sides.py")
_TITLES = {
    "ours": "orpo_lightning, empty cache",
    "warm": "  second start, to the first batch",
    "trl": "TRL ORPOTrainer, its default",
    "trl2": "TRL, dataset_num_proc=2",
    "encode": "the tokenizer alone (floor)",
}
_GOALS = {"trl / ours": (">=", 4.5), "trl2 / ours": (">=", 2.5), "ours / encode": ("<=", 1.3)}
# How far two sides' pairs are equal; each level forgives more than the one before. The known differences are
# TRL's: it ends ChatML answers with two stop tokens, and puts a BOS in front wherever the tokenizer has one.
_LEVELS = (
    "as they are",
    "but for what follows an answer's first stop token",
    "but for that and a leading BOS",
)
NOTES = (
    "ours: prepare_data and setup into an empty cache, reading, checking and storing included.",
    "trl: the map calls of ORPOTrainer.__init__ on the training rows only; reading the file into Arrow "
    "(load_seconds) and the rest of the trainer are not counted. Nothing is reused between runs.",
    "encode: encode_batch_fast, 512 texts a call, over all prompts and answers; no reading, no rendering.",
    "All sides: max_length cuts answers on the right, never the prompt; the tokenizer's own template; the "
    "tokenizer is loaded before the clock starts.",
    "Memory is above what was held after the imports; of worker processes, what they do not share.",
)


def compare_sides(options: argparse.Namespace) -> None:
    """Run every side `options.runs` times in turn; print and write what came out.

    Raises:
        SystemExit: a side failed, or the sides made different pairs.
    """
    sides = [side for side in options.sides.split(",") if side]
    if unknown := set(sides) - set(SIDES):
        raise SystemExit(f"--sides: expected some of {', '.join(SIDES)}, found {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.out) as name:
        scratch = Path(name).resolve()
        source = numbered(read_pairs(options.pairs), max_rows=options.rows)
        rows, size = write_rows(scratch / "rows.jsonl", source)
        runs = [_run_in_turn(sides, options, scratch, number) for number in range(options.runs)]
        tokens = _compare_tokens(scratch, sides, rows, runs[0])
    found = {
        "benchmark": "data",
        "machine": machine(options.cores),
        "settings": _settings(options) | {"rows": rows, "text_mb": round(size / 1e6, 1), "sides": sides},
        "summary": {side: _summary([run[side] for run in runs]) for side in runs[0]},
        "ratios": _ratios(runs),
        "share_of_cores_taken_by_others": share_of_others(
            [each for run in runs for each in run.values()], options.cores
        ),
        "tokens": tokens,
        "notes": NOTES,
        "runs": runs,
    }
    write_json(options.out / "data.json", found)
    _paint(found, options.out / "data.png")
    _print(found)
    if problems := [text for check in tokens.values() for text in check["problems"]]:
        raise SystemExit("the sides did not make the same pairs: " + "; ".join(problems))


def stream(options: argparse.Namespace) -> None:
    """Let `options.stream_gb` GB of rows go by in one fresh process; print and write its peak memory."""
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=options.out) as name:
        scratch, rows = Path(name).resolve(), None
        if options.stream_file:
            rows = str(scratch / "rows.jsonl")
            write_rows(Path(rows), numbered(read_pairs(options.pairs), max_bytes=options.stream_gb * 1e9))
        job = _job("stream", options, scratch)
        job |= {"rows": rows, "pairs": str(options.pairs.resolve()), "bytes": options.stream_gb * 1e9}
        result = run_fresh(_CHILD, job, scratch, options.cores)
    phases = result["phases"]
    source = "file" if options.stream_file else "generator"
    found = {
        "benchmark": f"data, {options.stream_gb:g} GB from a {source}",
        "machine": machine(options.cores),
        "settings": _settings(options) | {"gb": options.stream_gb, "source": source},
        "peak_mb": max(phase["peak_mb"] for phase in phases.values()),
        "peak_anonymous_mb": max(phase["peak_anonymous_mb"] for phase in phases.values()),
        "rows_per_second": round(result["rows"] / phases["prepare"]["seconds"], 1),
        "run": result,
    }
    write_json(options.out / f"stream_{source}.json", found)
    print(header(found))
    print(
        f"{result['rows']:,} rows ({options.stream_gb:g} GB of JSON from a {source}), "
        f"{result['pairs']:,} pairs kept, "
        f"{found['rows_per_second']:,.0f} rows/s, cache {result['cache_bytes'] / 1e9:.2f} GB"
    )
    print(f"{'memory beyond the libraries, MB':34} {'total':>8} {'anonymous':>10} {'seconds':>9}")
    for phase, figures in phases.items():
        memory = f"{figures['peak_mb']:8,.0f} {figures['peak_anonymous_mb']:10,.0f}"
        print(f"  {phase:32} {memory} {figures['seconds']:9,.1f}")
    print(f"peak {found['peak_mb']:,.0f} MB: goal < 1,000 {'met' if found['peak_mb'] < 1000 else 'MISSED'}")


def _run_in_turn(
    sides: list[str], options: argparse.Namespace, scratch: Path, number: int
) -> dict[str, dict[str, Any]]:
    """Run each side once in a fresh process, ours twice: the second finds the first one's cache."""
    found = {}
    for side in sides:
        for start in ("ours", "warm") if side == "ours" else (side,):
            job = _job(start, options, scratch) | {"processes": 2 if side == "trl2" else None}
            print(f"run {number + 1} of {options.runs}: {start} ...", end=" ", flush=True)
            found[start] = run_fresh(_CHILD, job, scratch, options.cores)
            print(f"{found[start]['seconds']:.1f} s", flush=True)
        for leftover in ("cache", "datasets"):
            shutil.rmtree(scratch / leftover, ignore_errors=True)
    return found


def _job(side: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    return {
        "side": side,
        "rows": str(scratch / "rows.jsonl"),
        "tokenizer": str(Path(options.tokenizer).resolve()),
        "max_length": options.max_length,
        "cache": str(scratch / "cache"),
        "scratch": str(scratch / "trainer"),
        "digests": str(scratch / f"{side}.npy"),
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = {"tokenizer": Path(options.tokenizer).name, "pairs": options.pairs.name}
    return names | {"max_length": options.max_length}


def _compare_tokens(
    scratch: Path, sides: list[str], rows: int, run: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return by side how its pairs compare with ours: all of them but those that ours says it left out."""
    if "ours" not in sides:
        return {}
    left_out = sum(run["ours"]["dropped"].values())
    return {
        side: compare_digests(_digests(scratch, "ours"), _digests(scratch, side), rows, left_out)
        for side in sides
        if side != "ours"
    }


def _digests(scratch: Path, side: str) -> list[list[int]]:
    import numpy as np

    return np.load(scratch / f"{side}.npy").T.tolist()  # type: ignore[no-any-return]


def compare_digests(
    ours: list[list[int]], other: list[list[int]], rows: int, left_out: int
) -> dict[str, Any]:
    """Compare the pairs of two sides, each given as lists of hashes by level of `_LEVELS`."""
    same = [len(set(mine) & set(theirs)) for mine, theirs in zip(ours, other, strict=True)]
    levels = {name: count for name, count in zip(_LEVELS, same, strict=True)}
    kept, problems = len(ours[0]), []
    if kept + left_out != rows:
        problems.append(f"{rows} rows, but {kept} pairs and {left_out} rows left out")
    if len(other[0]) != rows:
        problems.append(f"{rows} rows, but the other side has {len(other[0])} pairs")
    if len(set(ours[0])) != kept:
        problems.append("some of our pairs are alike, though no two rows are")
    if max(same) != kept:
        problems.append(f"{kept - max(same)} of our {kept} pairs are none of the other side's")
    return {"pairs": kept, "left_out_by_ours": left_out, "same": levels, "problems": problems}


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return min, median and max of everything that was measured, over the runs."""
    numbers = [key for key, value in results[0].items() if isinstance(value, int | float)]
    found: dict[str, Any] = {key: spread([result[key] for result in results]) for key in numbers}
    if "pairs" in results[0]:
        rows = results[0]["pairs"] + sum(results[0].get("dropped", {}).values())
        found["rows_per_second"] = spread([rows / result["seconds"] for result in results])
    return found


def _ratios(runs: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the ratios of the times, run by run: what slows the machine slows both sides of a run."""
    found = {}
    for name, (sense, goal) in _GOALS.items():
        above, below = name.split(" / ")
        if above in runs[0] and below in runs[0]:
            ratios = spread([run[above]["seconds"] / run[below]["seconds"] for run in runs])
            is_met = ratios["median"] >= goal if sense == ">=" else ratios["median"] <= goal
            found[name] = {**ratios, "goal": f"{sense} {goal}", "met": is_met}
    return found


def _print(found: dict[str, Any]) -> None:
    settings = found["settings"]
    print("\n" + header(found))
    print(f"{settings['rows']:,} rows, {settings['text_mb']:g} MB of JSON, tokenizer {settings['tokenizer']}")
    columns = f"{'rows/s':>8} {'CPU s':>7} {'peak MB':>7} {'anonym.':>7}"
    print(f"{'median (min to max)':36} {'seconds':>24} {columns}")
    for side, summary in found["summary"].items():
        seconds = "{median:.2f} ({min:.2f} to {max:.2f})".format(**summary["seconds"])
        rate = summary.get("rows_per_second")
        rows = f"{rate['median']:8,.0f}" if rate else " " * 8
        peaks = [summary[key]["median"] for key in ("peak_mb", "peak_anonymous_mb") if key in summary]
        memory = " ".join(f"{peak:7,.0f}" for peak in peaks)
        print(f"{_TITLES[side]:36} {seconds:>24} {rows} {summary['cpu_seconds']['median']:7.1f} {memory}")
    if "warm" in found["summary"]:
        with_imports = found["summary"]["warm"]["with_imports_seconds"]
        text = "second start, first batch with imports: {median:.1f} s ({min:.1f} to {max:.1f}), goal < 10"
        print(text.format(**with_imports))
    for name, ratio in found["ratios"].items():
        print("{name:36} {median:6.2f} ({min:.2f} to {max:.2f})  goal {goal}".format(name=name, **ratio))
    if warning := disturbed(found["share_of_cores_taken_by_others"]):
        print(warning)
    for side, check in found["tokens"].items():
        same = check["same"]
        level = max(_LEVELS, key=lambda name: same[name])  # the strictest of equals
        counts = f"{same[level]:,} of our {check['pairs']:,} pairs"
        print(
            f"tokens equal to {side}'s: {counts}, {level}; rows ours left out: {check['left_out_by_ours']:,}"
        )


def _paint(found: dict[str, Any], path: Path) -> None:
    """Paint rows per second of every side, the range over the runs as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = {side: each["rows_per_second"] for side, each in found["summary"].items() if side != "warm"}
    figure, axis = pyplot.subplots(figsize=(8, 0.9 + 0.55 * len(rates)), constrained_layout=True)
    for side, rate in rates.items():
        low, high = rate["median"] - rate["min"], rate["max"] - rate["median"]
        colour = "C0" if side == "ours" else "0.65"
        axis.barh(_TITLES[side], rate["median"], color=colour, xerr=[[low], [high]], capsize=3)
        axis.annotate(f" {rate['median']:,.0f}", (rate["max"], _TITLES[side]), va="center")
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    rows, facts = found["settings"]["rows"], found["machine"]
    axis.set_xlabel(
        f"rows per second, {rows:,} preference pairs, {facts['cores_used']} cores ({facts['cpu']})"
    )
    figure.savefig(path, dpi=110)
