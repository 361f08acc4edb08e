"""The table of `scripts/gpu_suite`, from its figures."""

from __future__ import annotations

from typing import Any

from benchmark_report import header

_KERNELS = 10


def table(found: dict[str, Any]) -> str:
    """Return the suite's results as Markdown."""
    parts = found["parts"]
    lines = [f"# GPU suite\n\n{header(found)}\n"]
    if peak := parts.get("peak", {}).get("flops_per_second"):
        lines.append(f"Products of large square matrices: {peak / 1e12:,.3g} TFLOP/s; MFU is of these.\n")
    cells = {name: part for name, part in parts.items() if "ours" in part and "trl" in part}
    if cells:
        lines += [_cells(cells), *(_kernels(name, part) for name, part in cells.items())]
    for name, part in parts.items():
        if "summary" in part:
            lines.append(f"## Tests: {name}\n\n{part['summary']}\n")
            lines += [f"- {line}" for line in part["failed"]]
    lines += [
        f"{name}: {part['error'].splitlines()[-1]}\n" for name, part in parts.items() if "error" in part
    ]
    return "\n".join(lines)


def _cells(cells: dict[str, Any]) -> str:
    columns = (
        "tokens/s, TRL",
        "ours",
        "ratio",
        "peak GB, TRL",
        "ours",
        "step / products",
        "MFU",
        "recomputed",
    )
    rows = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, part in cells.items():
        speeds = [part[side]["train_tokens_per_second"] for side in ("trl", "ours")]
        peaks = [
            (part[side]["model_mb"] + part[side]["peak_memory_above_model_mb"]) / 1e3
            for side in ("trl", "ours")
        ]
        mfu = "" if part["mfu"] is None else f"{part['mfu']:.0%}"
        figures = (
            *(f"{speed:,.0f}" for speed in speeds),
            f"{speeds[1] / speeds[0]:.2f}",
            *(f"{peak:.2f}" for peak in peaks),
            f"{part['step_over_matrix_products']:.2f}",
            mfu,
            part["gradient_checkpointing"],
        )
        rows.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(rows) + "\n"


def _kernels(name: str, part: dict[str, Any]) -> str:
    lines = [
        f"## {name}: our largest kernels, layout {part['layout']}\n",
        "| ms a step | share | calls | |",
        "|---|---|---|---|",
    ]
    for kernel in part["kernels"]["ours"][:_KERNELS]:
        figures = (f"{kernel['ms_per_step']:.2f}", f"{kernel['share']:.0%}", f"{kernel['calls_per_step']:g}")
        lines.append("| " + " | ".join(figures) + f" | `{kernel['name']}` |")
    return "\n".join(lines) + "\n"
