"""What a training benchmark needs besides its sides, in a process of its own: `… JOB.json RESULT.json`.

The parent never touches the GPU: what it held there would be missing on the sides.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark_process import do_job


def base(job: dict[str, Any]) -> dict[str, Any]:
    """Write the model that every side loads, with its tokenizer."""
    from benchmark_inputs import sizes_of, write_model, write_tokenizer

    start, folder = time.perf_counter(), Path(job["model"])
    write_model(
        folder, sizes_of(job["sizes"]), job["vocabulary"], job["dtype"], job["device"], seed=job["seed"]
    )
    write_tokenizer(folder, job["vocabulary"])
    return {"seconds": time.perf_counter() - start}


def floor(job: dict[str, Any]) -> dict[str, Any]:
    """Time the matrix products of the measured steps alone."""
    import torch
    from benchmark_floor import measure
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job["model"])
    return measure(job["micro_batches"], config, job["lora_r"], getattr(torch, job["dtype"]), job["device"])


def peak(job: dict[str, Any]) -> dict[str, Any]:
    """Time products of large square matrices."""
    import torch
    from benchmark_floor import peak_flops

    return peak_flops(getattr(torch, job["dtype"]), job["device"], job["size"])


def facts(job: dict[str, Any]) -> dict[str, Any]:
    """Return what a figure depends on besides the code, of the GPU."""
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gb": round(found.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
    }


SIDES = {"base": base, "floor": floor, "peak": peak, "facts": facts}


if __name__ == "__main__":
    do_job(SIDES)
