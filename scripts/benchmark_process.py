"""What every benchmark stands on: fresh processes on chosen cores, a meter, facts about the machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

MEGABYTE = 1e6
_SAMPLE_SECONDS = 0.05
_CHILDREN_EVERY = 10  # samples: finding them reads all of /proc
PACKAGES = (
    "orpo-lightning",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "peft",
    "accelerate",
    "bitsandbytes",
    "trl",
)


class Memory(NamedTuple):
    """Resident bytes of a process."""

    total: int
    """Including mapped files, which the system takes back when it needs room."""
    anonymous: int


def memory() -> Memory:
    """Return what this process holds now."""
    status = _status()
    return Memory(status["VmRSS"], status["RssAnon"])


def _status() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    parts = (line.split() for line in lines if line.endswith(" kB"))
    return {part[0].removesuffix(":"): int(part[1]) * 1024 for part in parts}


def peak_memory() -> int:
    """Return the most resident bytes since `forget_peak`; the kernel's own figure misses nothing."""
    return _status()["VmHWM"]


def forget_peak() -> None:
    """Let the peak begin anew."""
    # ru_maxrss will not do: it keeps what the parent process held when it forked.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _children_bytes() -> int:
    """Return what all descendants hold and do not share with this process: its pages count once."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # has ended meanwhile
                continue
    family, total = {os.getpid()}, 0
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    for pid in family - {os.getpid()}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))
    return total


class Meter:
    """Wall time, processor time and peak memory of the blocks it is entered for, worker processes included.

    Args:
        base: what is held before, from `memory`: peaks are counted from there.
    """

    def __init__(self, base: Memory) -> None:
        """Start at nothing."""
        self.base, self.seconds, self.cpu_seconds, self.machine_cpu_seconds = base, 0.0, 0.0, 0.0
        self.peak = base
        self._children = 0

    def __enter__(self) -> Meter:
        """Start the clock."""
        forget_peak()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self._machine = machine_cpu_seconds()
        self._start, self._start_cpu = time.perf_counter(), cpu_seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the clock."""
        self.seconds += time.perf_counter() - self._start
        self.cpu_seconds += cpu_seconds() - self._start_cpu
        self.machine_cpu_seconds += machine_cpu_seconds() - self._machine
        self._stop.set()
        self._sampler.join()
        now = memory()
        # The kernel's own peak misses nothing between two samples.
        self._raise(Memory(peak_memory(), now.anonymous))

    def figures(self) -> dict[str, float]:
        """Return seconds, and megabytes above the base."""
        return {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "cpu_seconds_of_others": round(max(0.0, self.machine_cpu_seconds - self.cpu_seconds), 2),
            "peak_mb": round((self.peak.total - self.base.total) / MEGABYTE, 1),
            "peak_anonymous_mb": round((self.peak.anonymous - self.base.anonymous) / MEGABYTE, 1),
            "worker_processes_mb": round(self._children / MEGABYTE, 1),
        }

    def _sample(self) -> None:
        count = children = 0
        while not self._stop.wait(_SAMPLE_SECONDS):
            if count % _CHILDREN_EVERY == 0:
                children = _children_bytes()
                self._children = max(self._children, children)
            count += 1
            now = memory()
            self._raise(Memory(now.total + children, now.anonymous + children))

    def _raise(self, found: Memory) -> None:
        self.peak = Memory(*map(max, self.peak, found))


def cpu_seconds() -> float:
    """Return processor seconds of this process and of the children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def minor_faults() -> int:
    """Return how many pages this process has asked the kernel for."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def machine_cpu_seconds() -> float:
    """Return processor seconds of everything that ran on the cores of this process, the host included."""
    mine, ticks = {f"cpu{core}" for core in os.sched_getaffinity(0)}, 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *counts = line.split()
        if name in mine:
            user, nice, system, _idle, _wait, *interrupts_and_stolen = map(int, counts[:8])
            ticks += user + nice + system + sum(interrupts_and_stolen)
    return ticks / os.sysconf("SC_CLK_TCK")


def run_fresh(
    script: Path,
    job: dict[str, Any],
    scratch: Path,
    cores: int,
    *,
    settings: dict[str, str] | None = None,
    on_gpu: bool = False,
    limit_s: float | None = None,
) -> dict[str, Any]:
    """Run `script JOB RESULT` by itself on the first so many cores; return what it wrote to RESULT.

    Args:
        script: the program of a side.
        job: what it is to do.
        scratch: folder of its temporary files.
        cores: as many threads as well.
        settings: further environment variables.
        on_gpu: whether it may see a GPU.
        limit_s: how long it may take; None: as long as it likes.

    Raises:
        SystemExit: it failed; with the end of what it printed.
    """
    threads = str(cores)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,  # the tokenizer's
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TMPDIR": str(scratch),  # temporary files of every side lie on the same disk
        **({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(script.parent.parent), os.environ.get("PYTHONPATH", "")))
        ),
        **(settings or {}),
    }
    environment.pop("TOKENIZERS_PARALLELISM", None)  # as a user has it: on
    request, result, log = (scratch / name for name in ("job.json", "result.json", "log.txt"))
    result.unlink(missing_ok=True)
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    request.write_text(json.dumps(job | {"cores": chosen, "started": time.monotonic()}), encoding="utf-8")
    words = [sys.executable, str(script), str(request), str(result)]
    with log.open("w", encoding="utf-8") as output:
        options = {"env": environment, "stdout": output, "stderr": output, "timeout": limit_s}
        try:
            code = subprocess.run(words, check=False, **options).returncode
        except subprocess.TimeoutExpired:
            raise SystemExit(
                f"{script.name} {job.get('side', '')} took longer than {limit_s:.0f} s"
            ) from None
    if code != 0 or not result.is_file():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        how = "was killed, probably out of memory" if code == -signal.SIGKILL else f"ended with {code}"
        raise SystemExit(f"{script.name} {job.get('side', '')} {how}:\n{tail}")
    return json.loads(result.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def machine(cores: int) -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores_of_machine": os.cpu_count(),
        "cores_used": min(cores, len(os.sched_getaffinity(0))),
        "threads": cores,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def do_job(sides: Mapping[str, Callable[[dict[str, Any]], Any]]) -> None:
    """Be a fresh process: do the job in one file on its cores, and write what came out to another."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.sched_setaffinity(0, job["cores"])
    Path(sys.argv[2]).write_text(json.dumps(sides[job["side"]](job)), encoding="utf-8")
