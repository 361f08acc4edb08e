"""What is measured of a training run, alike on every side: its clock, its memory, its losses, its kernels."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from benchmark_process import (
    MEGABYTE,
    cpu_seconds,
    forget_peak,
    machine_cpu_seconds,
    memory,
    minor_faults,
    peak_memory,
)
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

BETA = 0.1
COMPARED = ("loss", "nll_loss", "odds_ratio_loss", "logps/chosen", "logps/rejected")
"""What the sides must agree on."""
PROFILED_STEPS = 2
_KERNELS = 10
Means = dict[str, tuple[Any, Any]]
"""Of one micro-batch: sum and count of each quantity."""


class Watch:
    """Looks on while a trainer trains: it is told when the model is there and when a step is done.

    Args:
        job: `warmup` steps that do not count, `steps` that do, `device`, `started` (when the process was
            called for) and whether to `profile` some steps more.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        """Nothing is running yet."""
        self.warmup, self.steps = job["warmup"], job["steps"]
        self.last_step = self.warmup + self.steps + (PROFILED_STEPS if job["profile"] else 0)
        self._on_gpu, self._started, self._job = job["device"] == "cuda", job["started"], job
        self._count, self._profiling = 0, ExitStack()
        self._found: dict[str, Any] = {}

    def called(self) -> None:
        """The trainer is called now."""
        self._called = time.monotonic()

    def loaded(self, model: Any) -> None:
        """The model is there; memory is counted from here."""
        gc.collect()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
            return
        for parameter in model.parameters():
            parameter.detach().sum()  # weights that are mapped from the file come in at first use
        forget_peak()
        self._base = memory().total

    def step_done(self) -> None:
        """An optimizer step is done."""
        self._count += 1
        if self._count == 1:
            self._wait()
            now = time.monotonic()
            self._found["first_step_seconds"] = now - self._started
            self._found["first_step_after_call_seconds"] = now - self._called
        if self._count == self.warmup:
            self._start_clock()
        if self._count == self.warmup + self.steps:
            self._stop_clock("")
            peak = torch.cuda.max_memory_allocated() if self._on_gpu else peak_memory()
            self._found["peak_memory_above_model_mb"] = (peak - self._base) / MEGABYTE
            self._found["model_mb"] = self._base / MEGABYTE
            if self._job["profile"]:
                self._profiler = self._profiling.enter_context(profile(activities=self._activities()))
        if self._count == self.last_step and self._job["profile"]:
            self._wait()
            self._profiling.close()
            self._found["kernels"] = largest_kernels(self._profiler.key_averages())

    def validation(self, validate: Callable[[], Any], prefix: str = "validation_") -> None:
        """Run a validation under the clock; its figures' names begin with `prefix`."""
        self._start_clock()
        validate()
        self._stop_clock(prefix)

    def figures(self) -> dict[str, Any]:
        """Return what was measured."""
        assert "seconds" in self._found, f"{self._count} steps were done, {self.last_step} were expected"
        return self._found

    def _start_clock(self) -> None:
        self._wait()
        self._clocks = time.perf_counter(), cpu_seconds(), machine_cpu_seconds(), minor_faults()

    def _stop_clock(self, prefix: str) -> None:
        self._wait()
        ends = time.perf_counter(), cpu_seconds(), machine_cpu_seconds(), minor_faults()
        wall, mine, machine, faults = (end - start for start, end in zip(self._clocks, ends, strict=True))
        self._found |= {
            f"{prefix}seconds": wall,
            f"{prefix}cpu_seconds_of_others": max(0.0, machine - mine),
            f"{prefix}page_faults": faults,
        }

    def _activities(self) -> list[ProfilerActivity]:
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def largest_kernels(events: Any) -> list[dict[str, Any]]:
    """Return what took the most time of its own: kernels where there was a GPU, else operations."""
    # An operation's device time is that of the kernels it started, which stand there themselves.
    kernels = [
        event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    if kernels:
        by_time = {id(event): event.self_device_time_total for event in kernels}
    else:
        by_time = {id(event): event.self_cpu_time_total for event in events}
    total = sum(by_time.values()) or 1
    first = sorted(kernels or events, key=lambda event: -by_time[id(event)])[:_KERNELS]
    return [
        {
            "name": event.key[:100],
            "ms_per_step": by_time[id(event)] / 1e3 / PROFILED_STEPS,
            "share": by_time[id(event)] / total,
            "calls_per_step": event.count / PROFILED_STEPS,
        }
        for event in first
    ]


def means_by_step(records: Sequence[Means], accumulate: int) -> list[dict[str, float]]:
    """Return the means of `COMPARED` in each step of so many micro-batches."""
    return [mean_of(records[start : start + accumulate]) for start in range(0, len(records), accumulate)]


def mean_of(records: Sequence[Means]) -> dict[str, float]:
    """Return the means of `COMPARED` over micro-batches: sums and counts are added up."""
    names = [name for name in COMPARED if name != "loss"]
    found = {
        name: sum(float(record[name][0]) for record in records)
        / sum(float(record[name][1]) for record in records)
        for name in names
    }
    return {"loss": found["nll_loss"] + BETA * found["odds_ratio_loss"], **found}


def largest_difference(
    ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]], name: str
) -> float:
    """Return how far a quantity differs at most over the steps, relative where it is larger than one."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(one[name] - other[name]) / max(1.0, abs(other[name])) for one, other in pairs)
