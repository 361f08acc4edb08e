"""The parts of `scripts/gpu_suite`: tests, the machine's peak, and training a 7B-shaped model, beside TRL."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import benchmark
from benchmark_inputs import Lengths
from benchmark_process import machine
from benchmark_report import write_json
from benchmark_train import Workplace, in_order, measured_lengths, pairs_needed, workplace
from benchmark_train_figures import PAIRED, equal_work
from gpu_table import table

ROOT = Path(__file__).resolve().parent.parent
_TESTS = ROOT / "tests" / "gpu"
# Those that compile FlexAttention for every case take the longest, and so come last.
_FILES = {"memory-plan": "test_memory_plan.py", "layouts": "test_layouts.py"}
_RESERVE_S = 5
_TESTS_S = 150
_BASE = "scratch-base"
_TINY = {"model": "2x64", "vocabulary": "500", "lengths": (64,), "square": 256, "steps": "1", "cores": "1"}
_FULL = {
    "model": "mistral-7b",
    "vocabulary": "32k",
    "lengths": (1024, 2048),
    "square": 8192,
    "steps": "6",
    "cores": str(min(8, os.cpu_count() or 1)),
}
_QUANTIZATIONS = {"bf16": "none", "nf4": "nf4"}


class Suite:
    """Runs parts one after the other as long as there is time, and writes what is there after each.

    Args:
        out: folder of the results.
        device: "cuda" or "cpu".
        sizes: of the models and of the work.
        minutes: the parts may take together.
    """

    def __init__(self, out: Path, device: str, sizes: dict[str, Any], minutes: float) -> None:
        """Start the clock."""
        self.out, self.device, self.sizes = out, device, sizes
        self.end = time.monotonic() + 60 * minutes - _RESERVE_S
        cores = int(sizes["cores"])
        facts = machine(cores) | ({"gpu": self._bare("facts")} if device == "cuda" else {})
        self.found: dict[str, Any] = {"suite": "gpu", "machine": facts, "parts": {}}

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return all parts, the most telling first."""
        first, *others = (
            {f"{name}-{length}": self._cell(length, kind) for name, kind in _QUANTIZATIONS.items()}
            for length in self.sizes["lengths"]
        )
        last = {name: cell for cells in others for name, cell in cells.items()}
        tests = {name: partial(self.tests, file) for name, file in _FILES.items()}
        return {"peak": self.peak, **first, **tests, **last}

    def run(self, names: list[str]) -> bool:
        """Run these parts; return whether all of them went well."""
        for name in names:
            start = time.monotonic()
            print(f"{name}, {self.left():.0f} s left", flush=True)
            try:
                result = self.parts()[name]() if self.left() > 0 else {"error": "no time left"}
            except SystemExit as error:  # a side that failed says why
                result = {"error": str(error)}
            self.found["parts"][name] = {"wall_s": round(time.monotonic() - start, 1), **result}
            write_json(self.out / "gpu.json", self.found)
        text = table(self.found)
        (self.out / "gpu.md").write_text(text, encoding="utf-8")
        print(text)
        return not any("error" in result for result in self.found["parts"].values())

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def tests(self, file: str) -> dict[str, Any]:
        """Run the tests of a file that need a GPU."""
        words = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
        words.append(str(_TESTS / file))
        try:
            done = subprocess.run(
                words,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=min(_TESTS_S, self.left()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or ""
            lines = (said.decode(errors="replace") if isinstance(said, bytes) else said).splitlines()
            failed = [line for line in lines if " FAILED " in line or " ERROR " in line]
            passed = sum(" PASSED " in line for line in lines)
            stopped = f"the tests were stopped, for want of time, behind {passed} that passed"
            return {"summary": stopped, "failed": failed, "error": stopped}
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        result = {"summary": lines[-1] if lines else done.stderr[-300:], "failed": failed}
        return result if done.returncode == 0 else {"error": f"pytest ended with {done.returncode}", **result}

    def peak(self) -> dict[str, Any]:
        """Measure the products of large square matrices: what MFU is counted from."""
        return self._bare("peak", size=self.sizes["square"])

    def _bare(self, side: str, **job: Any) -> dict[str, Any]:
        dtype = "bfloat16" if self.device == "cuda" else "float32"
        job |= {"device": self.device, "dtype": dtype, "without": None}
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self.out) as name:
            place = Workplace(Path(name).resolve(), job, int(self.sizes["cores"]))
            return place.run(side, limit_s=self.left())

    def _cell(self, length: int, quantization: str) -> Callable[[], dict[str, Any]]:
        def cell() -> dict[str, Any]:
            try:
                return self._train(length, quantization, "none")
            except SystemExit as error:
                if not is_out_of_memory(error):
                    raise
            # On a smaller card both sides recompute.
            return self._train(length, quantization, "all")

        return cell

    def _train(self, length: int, quantization: str, recomputing: str) -> dict[str, Any]:
        """Train on both sides; return their figures and how near ours come to the machine's peak."""
        options = self._options(length, quantization)
        options.gradient_checkpointing = recomputing
        lengths = full_pairs(length, pairs_needed(options), options.seed)
        # The model is written once: seven billion weights take their time.
        with workplace(options, lengths, self.out / _BASE) as place:
            ours = place.run("ours", limit_s=self.left())
            floor = place.run("floor", limit_s=self.left(), micro_batches=measured_lengths(place, ours))
            found = {"gradient_checkpointing": recomputing, **self._of_ours(ours, floor)}
            try:
                trl = place.run("trl", limit_s=self.left(), train=in_order(place, ours))
            except SystemExit as error:
                if recomputing == "none" and is_out_of_memory(error):
                    raise  # with both recomputing it may be compared
                return found | {"error": str(error)}
        found["trl"] = _figures(trl)
        found["kernels"]["trl"] = trl["kernels"]
        return found | {"equal_work": equal_work(ours, trl, PAIRED)}

    def _of_ours(self, ours: dict[str, Any], floor: dict[str, Any]) -> dict[str, Any]:
        """Return our side's figures and how near they come to the machine's peak."""
        peak = self.found["parts"].get("peak", {}).get("flops_per_second")
        flops_per_second = floor["flops"] / ours["seconds"]
        return {
            "ours": _figures(ours),
            "layout": ours["layout"],
            "flops_per_second": flops_per_second,
            "mfu": None if peak is None else flops_per_second / peak,
            "step_over_matrix_products": ours["seconds"] / floor["seconds"],
            "kernels": {"ours": ours["kernels"]},
        }

    def _options(self, length: int, quantization: str) -> argparse.Namespace:
        sizes = {name: self.sizes[name] for name in ("model", "vocabulary", "steps", "cores")}
        words = [word for name, value in sizes.items() for word in (f"--{name}", value)]
        words += [
            "--device",
            self.device,
            "--quantization",
            quantization,
            "--out",
            str(self.out),
            "--profile",
        ]
        return benchmark.parse(["train", *words, "--warmup", "3", "--validation-pairs", "8"])


def is_out_of_memory(error: SystemExit) -> bool:
    """Tell whether a side ended for want of memory."""
    return "out of memory" in str(error).lower()


def _figures(side: dict[str, Any]) -> dict[str, float]:
    names = ("step_seconds", "train_pairs_per_second", "train_tokens_per_second", "first_step_seconds")
    names += ("validation_pairs_per_second", "model_mb", "peak_memory_above_model_mb")
    return {name: side[name] for name in names}


def full_pairs(length: int, count: int, seed: int) -> list[Lengths]:
    """Return pairs that nearly fill a length: a third prompt, the answers a half to two thirds."""
    draw = random.Random(seed)
    prompt = length // 3

    def answer() -> int:
        return draw.randint(length // 2, length - prompt)

    return [Lengths(prompt, answer(), answer()) for _ in range(count)]


@contextmanager
def _clean(out: Path) -> Iterator[None]:
    """Remove the model in the end."""
    import shutil

    try:
        yield
    finally:
        shutil.rmtree(out / _BASE, ignore_errors=True)


def main() -> None:
    """Run the suite; the exit status is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the suite itself")
    parser.add_argument("--only", help="some of the parts")
    parser.add_argument("--minutes", type=float, default=8, help="that all parts may take together")
    options = parser.parse_args()
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no GPU here; --device cpu --tiny tries the suite itself")
    options.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(options.out, options.device, _TINY if options.tiny else _FULL, options.minutes)
    names = options.only.split(",") if options.only else list(suite.parts())
    if unknown := set(names) - set(suite.parts()):
        parser.error(
            f"--only: expected some of {', '.join(suite.parts())}, found {', '.join(sorted(unknown))}"
        )
    with _clean(options.out):
        went_well = suite.run(names)
    raise SystemExit(0 if went_well else 1)


if __name__ == "__main__":
    main()
