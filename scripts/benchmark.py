"""Measure this package against TRL and against the floor of the machine, all sides in one run (Linux).

    python scripts/benchmark.py --lengths ultrafeedback --runs 5 --out bench
    python scripts/benchmark.py train --lengths short --model 12x768 --vocabulary 128k --out bench
    python scripts/benchmark.py data --rows 60000 --out bench
    python scripts/benchmark.py data --stream-gb 10 --out bench

Without a verb it is the training benchmark. Every side runs in a fresh process, on the same cores with as
many threads, in turn with the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"
_DATA_SIDES = "ours,trl,trl2,encode"


def main(words: list[str] | None = None) -> None:
    """Run one benchmark: print its table, write its JSON and its chart."""
    words = sys.argv[1:] if words is None else words
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["train", *words]
    options = parse(words)
    if options.benchmark == "data":
        import benchmark_data

        (benchmark_data.compare_sides if options.stream_gb is None else benchmark_data.stream)(options)
    elif options.curve:
        import benchmark_train_curve

        benchmark_train_curve.curve(options)
    else:
        import benchmark_train

        benchmark_train.compare(options)


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    _add_data(benchmarks)
    _add_train(benchmarks)
    options = parser.parse_args(words)
    if options.benchmark == "train":
        _complete(options, parser)
    return options


def _add_data(benchmarks: Any) -> None:
    data = benchmarks.add_parser("data", help="from rows to the first batch: time, memory, equal tokens")
    data.add_argument("--tokenizer", default=str(QUICKSTART / "model"), help="folder of a tokenizer")
    data.add_argument(
        "--pairs", type=Path, default=QUICKSTART / "train.jsonl", help="prompt, chosen, rejected"
    )
    data.add_argument("--out", type=Path, default=Path("bench"), help="folder; scratch files lie there too")
    data.add_argument("--max-length", type=int, default=1024, help="longer answers are cut, by every side")
    data.add_argument("--cores", type=int, default=2, help="cores, and threads, of every side")
    data.add_argument("--rows", type=int, default=60_000, help="the pairs, repeated until there are so many")
    data.add_argument("--runs", type=int, default=3, help="how often each side runs")
    data.add_argument("--sides", default=_DATA_SIDES, help="some of these")
    data.add_argument("--stream-gb", type=float, help="instead: memory while so many GB of rows go by")
    data.add_argument("--stream-file", action="store_true", help="stream them from a file, not a generator")


def _add_train(benchmarks: Any) -> None:
    train = benchmarks.add_parser(
        "train", help="training and validation: speed, memory, first step, equal losses"
    )
    add = train.add_argument
    lengths = "ultrafeedback, long_prompt, short, or a file of pairs or of their token counts"
    add("--lengths", default="ultrafeedback", help=lengths)
    add("--tokenizer", default=str(QUICKSTART / "model"), help="folder of one that counts a file's tokens")
    add("--model", default="6x384", help="layers x width of a Llama-shaped model, or mistral-7b")
    add("--vocabulary", type=_thousands, default=32_000, help="tokens, such as 32k or 128k")
    add("--batch", type=int, default=2, help="pairs in a micro-batch")
    add("--accumulate", type=int, help="micro-batches in a step; 1, with --ablate 4")
    add("--validation-batch", type=int, help="pairs in a batch of validation; twice --batch")
    add("--validation-pairs", type=int, default=24, help="pairs to validate on")
    add("--validation-sample", type=int, help="how many of them ours draws and validates on; all of them")
    add("--steps", type=int, default=8, help="steps that are measured")
    add("--warmup", type=int, default=2, help="steps before them that are not")
    add("--runs", type=int, default=5, help="how often each side runs")
    add("--out", type=Path, default=Path("bench"), help="folder; scratch files lie there too")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where every side runs")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and products; float32, on cuda bfloat16")
    add("--quantization", choices=("none", "nf4"), default="none", help="of the frozen weights")
    add("--lora-r", type=int, default=16, help="rank of LoRA on the seven projections")
    add("--dropout", type=float, default=0.0, help="of LoRA; above 0 the losses cannot be compared")
    add(
        "--gradient-checkpointing",
        choices=("none", "all", "trl"),
        default="none",
        help="on which sides activations are recomputed; trl: on TRL's alone, whose default it is",
    )
    add("--allocators", default="neutral,default", help="settings of the C allocator, some of these")
    add("--cores", type=int, default=2, help="cores, and threads, of every side")
    add("--seed", type=int, default=7, help="of lengths, words, weights and order")
    add("--profile", action="store_true", help="list the operations that take the most time")
    add("--ablate", action="store_true", help="instead: each idea switched off alone")
    add(
        "--curve", action="store_true", help="instead: the ratio over prompt share, length, batch, vocabulary"
    )


def _complete(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Fill what was left open, and refuse what cannot be run."""
    options.accumulate = options.accumulate or (4 if options.ablate else 1)
    options.validation_batch = options.validation_batch or 2 * options.batch
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    for name in ("batch", "accumulate", "validation_batch", "steps", "warmup", "runs", "cores"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(options, name)}")
    if options.validation_pairs % options.validation_batch:
        # TRL averages batch means: a smaller last batch would weigh too much.
        parser.error(
            f"--validation-pairs: expected a multiple of {options.validation_batch} (--validation-batch)"
        )
    sample, most = options.validation_sample, options.validation_pairs
    if sample is not None and not 2 <= sample <= most:
        parser.error(f"--validation-sample: expected 2 to {most} (--validation-pairs), found {sample}")
    if unknown := set(options.allocators.split(",")) - {"neutral", "default"}:
        parser.error(f"--allocators: expected some of neutral, default, found {', '.join(sorted(unknown))}")
    if (
        options.lengths not in ("ultrafeedback", "long_prompt", "short")
        and not Path(options.lengths).is_file()
    ):
        parser.error(
            f"--lengths: expected ultrafeedback, long_prompt, short or a file, found {options.lengths}"
        )


def _thousands(text: str) -> int:
    number = text.removesuffix("k")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number such as 32k, found {text!r}")
    return int(number) * (1000 if text.endswith("k") else 1)


if __name__ == "__main__":
    main()
