"""Tables and charts of the training benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark_report import disturbed, header
from benchmark_train_figures import ABLATIONS

# Figure, its title, and which side should have the more of it.
_FIGURES = {
    "train_pairs_per_second": "training, pairs/s",
    "train_tokens_per_second": "training, unique tokens/s",
    "validation_pairs_per_second": "validation, pairs/s",
    "peak_memory_above_model_mb": "peak memory above the model, MB",
    "first_step_seconds": "first step done, s after the start",
    "first_step_after_call_seconds": "first step done, s after the call",
}
_RECOMPUTING = {
    "none": "nothing",
    "all": "activations",
    "trl": "activations on TRL's side, as is its default",
}
_RATIO_OF = {
    "peak_memory_above_model_mb": "peak_memory_above_model",
    "train_tokens_per_second": "train_pairs_per_second",
}


def goals(settings: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Return what the ratios should be, on a CPU."""
    if settings["device"] != "cpu":
        return {}
    is_large = settings["vocabulary"] > 64_000
    return {
        "train_pairs_per_second": (">=", 2.4 if is_large else 3.0),
        "validation_pairs_per_second": (">=", 2.8),
        "peak_memory_above_model": ("<=", 0.12 if is_large else 0.25),
        "first_step_seconds": ("<=", 1.0),
    }


def print_comparison(found: dict[str, Any]) -> None:
    """Print a table for each allocator."""
    _print_head(found)
    for allocator, summary in found["summary"].items():
        key = "ratios" if allocator == "neutral" else f"ratios_{allocator}_allocator"
        wanted = goals(found["settings"]) if allocator == "neutral" else {}
        print(
            f"{allocator + ' allocator, medians':36} {'TRL':>10} {'ours':>10} {'ours / TRL (min to max)':>26}"
        )
        for figure, title in _FIGURES.items():
            name = _RATIO_OF.get(figure, figure)
            sides = (summary[side][figure]["median"] for side in ("trl", "ours"))
            ratio = found[key][name]
            text = "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
            verdict = _verdict(ratio["median"], wanted.get(figure.removesuffix("_mb")))
            print(f"  {title:34} {_rows(sides)} {text:>26}{verdict}")
        steps = found["settings"]["steps"]
        faults = (summary[side]["page_faults"]["median"] / steps for side in ("trl", "ours"))
        print(f"  {'pages asked of the system, a step':34} {_rows(faults)}")
        over = found["step_over_matrix_products"][allocator]
        milliseconds = 1e3 * summary["ours"]["step_seconds"]["median"]
        text = "{median:.2f} ({min:.2f} to {max:.2f})".format(**over)
        verdict = _verdict(over["median"], ("<=", 1.25)) if wanted else ""
        print(f"  our step ({milliseconds:.0f} ms) / its bare matrix products: {text}{verdict}")
        if "sampled_validation" in found:
            _print_sampled(found["sampled_validation"][allocator], summary)
    _print_work(found["equal_work"], "TRL's")


def _print_sampled(sampled: dict[str, Any], summary: dict[str, Any]) -> None:
    """Print what a sample costs beside all pairs, and whether its intervals hold their values."""
    mine, theirs = (summary[side]["validation_seconds"]["median"] for side in ("ours", "trl"))
    shares = [sampled[f"share_of_trls_seconds{which}"]["median"] for which in ("", "_with_the_base")]
    print(
        f"  validation of {sampled['pairs']:,} pairs by a sample of {sampled['sample']:,}: {mine:,.1f} s "
        f"against {theirs:,.1f} s, {shares[0]:.1%} of TRL's time; a run's first, which asks the base too, "
        f"{shares[1]:.1%}"
    )
    for name, value in sampled["values"].items():
        low, high = value["interval"]
        print(f"    {name:18} sample [{low:.5g}, {high:.5g}], TRL on all pairs {value['all_pairs']:.5g}")


def print_ablation(found: dict[str, Any]) -> None:
    """Print what each idea gives."""
    _print_head(found)
    columns = f"{'training, pairs/s':>18} {'validation, pairs/s':>20} {'peak above model, MB':>21}"
    print(f"{'medians':22} {columns} loss differs")
    for side in ("ours", *ABLATIONS):
        summary = found["summary"]["neutral"][side]
        names = ("train_pairs_per_second", "validation_pairs_per_second", "peak_memory_above_model_mb")
        train, validation, peak = (summary[name]["median"] for name in names)
        gap = "" if side == "ours" else f"{found['equal_work_without'][side]['first_step']:.1e}"
        title = "ours" if side == "ours" else f"without {side}"
        print(f"{title:22} {train:18,.3f} {validation:20,.3f} {peak:21,.1f} {gap:>12}")
    _print_work(found["equal_work"], "with all of them")


def _print_head(found: dict[str, Any]) -> None:
    settings = found["settings"]
    print("\n" + header(found))
    weights = f"{settings['dtype']}, quantization {settings['quantization']}"
    size = f"{settings['model']}, V = {settings['vocabulary']:,}, {weights}"
    lora = f"LoRA r = {settings['lora_r']}, dropout {settings['dropout']:g}"
    pairs = f"{settings['lengths']}, {settings['tokens_per_pair']:g} tokens a pair"
    batch = f"{settings['batch']} pairs x {settings['accumulate']}, layout {found['layout']}"
    print(f"{size}; {lora}; {pairs}; {batch}; recomputing {_RECOMPUTING[settings['gradient_checkpointing']]}")
    if warning := disturbed(found["share_of_cores_taken_by_others"]):
        print(warning)


def _print_work(work: dict[str, float], whose: str) -> None:
    gaps = f"{work['first_step']:.1e} in the first step, {work['all_steps']:.1e} at most in any"
    validation = f", {work['validation']:.1e} in validation" if "validation" in work else ""
    print(f"losses differ from {whose} by {gaps}{validation} (relative)")


def _rows(values: Any) -> str:
    return " ".join(f"{value:10,.2f}" for value in values)


def _verdict(value: float, goal: tuple[str, float] | None) -> str:
    if goal is None:
        return ""
    sense, limit = goal
    is_met = value >= limit if sense == ">=" else value <= limit
    return f"  goal {sense} {limit:g} {'met' if is_met else 'MISSED'}"


def paint(found: dict[str, Any], path: Path) -> None:
    """Paint both sides' figures, a panel each, the range over the runs as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in _FIGURES if name in ("train_pairs_per_second", "validation_pairs_per_second")]
    shown += ["peak_memory_above_model_mb", "first_step_seconds"]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.4), constrained_layout=True)
    for axis, name in zip(axes, shown, strict=True):
        bars = []
        for allocator, summary in found["summary"].items():
            note = "" if allocator == "neutral" else f"\n({allocator})"
            bars += [
                (f"{title}{note}", summary[side][name], side)
                for side, title in (("trl", "TRL"), ("ours", "ours"))
            ]
        for label, values, side in bars:
            low, high = values["median"] - values["min"], values["max"] - values["median"]
            colour = "C0" if side == "ours" else "0.65"
            axis.bar(label, values["median"], color=colour, yerr=[[low], [high]], capsize=3)
            number = f"{values['median']:,.0f}" if values["median"] >= 100 else f"{values['median']:.3g}"
            axis.annotate(number, (label, values["max"]), ha="center", va="bottom")
        axis.set_title(_FIGURES[name], fontsize="medium")
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    settings, facts = found["settings"], found["machine"]
    device = facts["gpu"]["name"] if facts.get("gpu") else f"{facts['cores_used']} cores ({facts['cpu']})"
    figure.suptitle(
        f"{settings['model']}, V = {settings['vocabulary']:,}, {settings['lengths']}, {device}",
        fontsize="medium",
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def paint_curve(found: dict[str, Any], path: Path) -> None:
    """Paint how many times faster training is, over each axis of the curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = found["curve"]
    figure, axes = pyplot.subplots(
        1, len(curves), figsize=(3.2 * len(curves), 3.2), sharey=True, constrained_layout=True
    )
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        both = [point for point in points if "ratio" in point]
        axis.plot([point["value"] for point in both], [point["ratio"] for point in both], "o-")
        for point in points:
            if "failed" in point:
                axis.annotate("TRL failed", (point["value"], 1.05), ha="right", color="0.4")
        if name != "prompt share":
            axis.set_xscale("log", base=2)
        axis.set_xticks([point["value"] for point in points], [f"{point['value']:g}" for point in points])
        axis.minorticks_off()
        axis.axhline(1, color="0.65", linewidth=1)
        axis.set_xlabel(name)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("training pairs/s, ours / TRL")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
