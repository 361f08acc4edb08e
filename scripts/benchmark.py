"""Measure this package against TRL and against the floor of the machine, all sides in one run (Linux).

    python scripts/benchmark.py data --rows 60000 --out bench
    python scripts/benchmark.py data --stream-gb 10 --out bench

Every side runs in a fresh process, on the same cores with as many threads, in turn with the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import benchmark_data

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run one benchmark: print its table, write its JSON and its chart."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    data = benchmarks.add_parser("data", help="from rows to the first batch: time, memory, equal tokens")
    quickstart = ROOT / "configs" / "quickstart"
    data.add_argument("--tokenizer", default=str(quickstart / "model"), help="folder of a tokenizer")
    data.add_argument(
        "--pairs", type=Path, default=quickstart / "train.jsonl", help="prompt, chosen, rejected"
    )
    data.add_argument("--out", type=Path, default=Path("bench"), help="folder; scratch files lie there too")
    data.add_argument("--max-length", type=int, default=1024, help="longer answers are cut, by every side")
    data.add_argument("--cores", type=int, default=2, help="cores, and threads, of every side")
    data.add_argument("--rows", type=int, default=60_000, help="the pairs, repeated until there are so many")
    data.add_argument("--runs", type=int, default=3, help="how often each side runs")
    data.add_argument("--sides", default=",".join(benchmark_data.SIDES), help="some of these")
    data.add_argument("--stream-gb", type=float, help="instead: memory while so many GB of rows go by")
    data.add_argument("--stream-file", action="store_true", help="stream them from a file, not a generator")
    options = parser.parse_args()
    if options.stream_gb is None:
        benchmark_data.compare_sides(options)
    else:
        benchmark_data.stream(options)


if __name__ == "__main__":
    main()
