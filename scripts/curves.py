"""Read a run's TensorBoard events into a JSON file and paint its curves (needs matplotlib, in the dev extra).

python scripts/curves.py runs/smollm2 --out docs/smollm2
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PANELS = (
    ("loss", ("loss", "nll_loss")),
    ("odds-ratio loss", ("odds_ratio_loss",)),
    ("log odds ratio", ("log_odds_ratio",)),
    ("mean log-probability", ("logps/chosen", "logps/rejected")),
    ("margin (beta × mean logp)", ("rewards/margins",)),
    ("accuracy", ("rewards/accuracies",)),
)


def read_curves(folder: Path) -> dict[str, list[list[float]]]:
    """Return every scalar of a run as [step, value] by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for name in sorted(events.Tags()["scalars"]):
        if name.startswith(("train/", "val/")):
            # A run killed after a checkpoint logs the steps behind it twice: the resumed run's count.
            last = {event.step: event.value for event in events.Scalars(name)}
            curves[name] = [[step, value] for step, value in sorted(last.items())]
    return curves


def paint(curves: dict[str, Any], path: Path) -> None:
    """Paint training (thin) and validation (dots) of the main quantities."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, (title, names) in zip(axes.flat, PANELS, strict=True):
        for number, name in enumerate(names):
            for stage, style in (("train", {"alpha": 0.45}), ("val", {"marker": "o"})):
                points = curves.get(f"{stage}/{name}", [])
                if points:
                    steps, values = zip(*points, strict=True)
                    axis.plot(steps, values, color=f"C{number}", label=f"{stage}/{name}", **style)
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Write OUT.json and OUT.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="path without ending")
    options = parser.parse_args()
    curves = read_curves(options.run)
    options.out.with_suffix(".json").write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    paint(curves, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
