"""Which plots TensorBoard opens on: a page of those that say whether a run goes well."""

from __future__ import annotations

from typing import Any


def _lines(*tags: str) -> list[Any]:
    # The plugin takes each tag as a regular expression.
    return ["Multiline", [rf"^{tag}$" for tag in tags]]


def _band(name: str) -> list[Any]:
    """Return a validation's value between the ends of its interval."""
    return ["Margin", [f"val/{name}", f"val_ci_low/{name}", f"val_ci_high/{name}"]]


def layout() -> dict[str, dict[str, list[Any]]]:
    """Return the layout for `SummaryWriter.add_custom_scalars`: category, then title, then a plot."""
    return {
        "1 Is it learning?": {
            "loss": _lines("train/loss", "val/loss"),
            "loss, validation with its 95 % interval": _band("loss"),
            "accuracy": _lines(
                "train/rewards/accuracies", "val/rewards/accuracies", "val/rewards/accuracies_longer_is_wrong"
            ),
            "accuracy, validation with its 95 % interval": _band("rewards/accuracies"),
            "accuracy where the longer answer is wrong": _band("rewards/accuracies_longer_is_wrong"),
            "margin, validation with its 95 % interval": _band("rewards/margins"),
        },
        "2 At what price?": {
            "chosen answers: change of the mean log-probability since the base": _band("logps_change/chosen"),
            "rejected answers: change since the base": _band("logps_change/rejected"),
            "chosen less rejected: change since the base": _band("logps_change/margins"),
            "mean log-probability, validation": _lines("val/logps/chosen", "val/logps/rejected"),
            "mean log-probability, training": _lines("train/logps/chosen", "train/logps/rejected"),
            "canary: loss of general text, change since the base": _lines("val/canary_nll_change"),
        },
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
