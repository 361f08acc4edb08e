"""The page of `find-lr`: the losses over the learning rate, and the suggestion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orpo_lightning import __version__
from orpo_lightning.pages.dots import Dot, axis_of
from orpo_lightning.pages.frame import render
from orpo_lightning.pages.lines import figure


def find_lr_page(report: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """Return the HTML page: one file that needs nothing else.

    Args:
        report: learning rates, losses, smoothed losses, suggestion.
        sentences: what it comes to, the suggestion first.
    """
    rates, losses = report["rates"], [float(loss) for loss in report["losses"]]
    smoothed = report["smoothed"]
    shown = [
        Dot(rate, loss, "ended", f"learning rate {rate:.2e}: loss {figure(loss)}")
        for rate, loss in zip(rates, losses, strict=True)
        if math.isfinite(loss)
    ]
    path = [Dot(rate, loss, "usual", "") for rate, loss in zip(rates, smoothed, strict=False)]
    rate = report["suggestion"]["rate"]
    if rate is not None:
        near = min(path, key=lambda dot: abs(math.log(dot.x / rate)))
        shown.append(Dot(near.x, near.y, "best", sentences[0]))
    return render(
        "find_lr.html.jinja",
        maker=f"{__version__} · find-lr",
        title="A learning rate to begin with",
        sentences=sentences,
        found=rate is not None,
        shown=shown,
        axis=axis_of(rates, log=True),
        path=path,
    )
