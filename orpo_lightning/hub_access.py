"""Trying again where the hub fails for a moment and its own client does not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from orpo_lightning.data.hub_errors import is_passing
from orpo_lightning.errors import first_line

log = logging.getLogger(__name__)
_WAITS = (1, 4, 16)

T = TypeVar("T")


def with_retries(fetch: Callable[[], T], name: str) -> T:
    """Return what `fetch` returns, called again after some seconds where a download failed for a moment.

    `huggingface_hub` tries again by itself, up to five times and longer each time: all requests for a file's
    data sheet (429, 5xx, time-outs), downloads that are refused with 429, and those that stop, which it goes
    on with where they stopped. What is left to us is a download refused with 5xx, one whose connection is
    reset, and one that came out in another length. Files that came whole are not fetched again.

    Args:
        fetch: loads something of the hub.
        name: of the repository.

    Raises:
        Exception: of the last try.
    """
    for wait in _WAITS:
        try:
            return fetch()
        except Exception as error:  # of whatever library lies between
            if not is_passing(error):
                raise
            log.warning("%s: %s; trying again in %d s", name, first_line(error), wait)
        time.sleep(wait)
    return fetch()
