"""Which plots TensorBoard opens on: a page of those that say whether a run goes well."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

Plots = dict[str, list[Any]]
"""Title, then what `SummaryWriter.add_custom_scalars` takes for a plot."""


def _lines(*tags: str) -> list[Any]:
    # The plugin takes each tag as a regular expression.
    return ["Multiline", [rf"^{tag}$" for tag in tags]]


def _band(name: str) -> list[Any]:
    """Return a validation's value between the ends of its interval."""
    return ["Margin", [f"val/{name}", f"val_ci_low/{name}", f"val_ci_high/{name}"]]


def _category(lines: Plots, bands: Plots) -> Plots:
    # TensorBoard shows lines before bands, and of the bands the last one first.
    return {**lines, **dict(reversed(bands.items()))}


def layout(without: Collection[str] = ()) -> dict[str, Plots]:
    """Return the layout for `SummaryWriter.add_custom_scalars`: category, title, plot.

    Args:
        without: values that this run will not log; plots of them are left out.
    """
    return {
        category: {title: plot for title, plot in plots.items() if plot[1][0].strip("^$") not in without}
        for category, plots in _all_plots().items()
    }


def _all_plots() -> dict[str, Plots]:
    accuracies = [f"{stage}/rewards/accuracies" for stage in ("train", "val")]
    return {
        "1 Is it learning?": _category(
            {"loss": _lines("train/loss", "val/loss"), "accuracy": _lines(*accuracies)},
            {
                "margin, validation with its 95 % interval": _band("rewards/margins"),
                "loss, validation with its 95 % interval": _band("loss"),
                "accuracy, validation with its 95 % interval": _band("rewards/accuracies"),
                "accuracy where the longer answer is wrong": _band("rewards/accuracies_longer_is_wrong"),
            },
        ),
        "2 At what price?": _category(
            {
                "mean log-probability, training": _lines("train/logps/chosen", "train/logps/rejected"),
                "mean log-probability, validation": _lines("val/logps/chosen", "val/logps/rejected"),
                "canary: loss of general text, change since the base": _lines("val/canary_nll_change"),
            },
            {
                "chosen answers: change since the base": _band("logps_change/chosen"),
                "rejected answers: change since the base": _band("logps_change/rejected"),
                "chosen less rejected: change since the base": _band("logps_change/margins"),
            },
        ),
        "3 How fast?": {
            "pairs a second": _lines("train/pairs_per_second"),
            "scored tokens a second": _lines("train/tokens_per_second"),
            "share of the peak (MFU)": _lines("train/mfu"),
            "share of padding": _lines("train/padding"),
            "peak memory, MB": _lines("train/peak_memory_mb"),
        },
        "4 The optimizer": {
            "learning rate": _lines("train/lr"),
            "gradient norm before clipping": _lines("train/grad_norm"),
        },
    }
