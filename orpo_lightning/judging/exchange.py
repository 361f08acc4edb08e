"""Asking an HTTP endpoint for JSON: within a time, and again where it fails for a moment."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any, NoReturn

from orpo_lightning.errors import SurroundingsError, first_line
from orpo_lightning.masking import MASK, mask_text

log = logging.getLogger(__name__)
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""What a server answers that may answer another way a little later."""
_LONGEST_WAIT = 60.0
_LARGEST = 8 << 20
"""Bytes of an answer."""


class UnreadableError(ValueError):
    """What came back is no JSON, each time it was asked for."""


class Exchange:
    """One endpoint, to be used by several threads at a time.

    Args:
        url: of the endpoint, without the path of its parts.
        key: is sent as a bearer token, and stands in no message; None sends none.
        timeout: seconds that one try may take, from the connection to the last byte.
        waits: seconds before each further try; a server that says Retry-After is given that long.
    """

    def __init__(
        self, url: str, key: str | None, *, timeout: float = 120.0, waits: Sequence[float] = (1, 2, 4, 8, 16)
    ) -> None:
        """Connect to nothing yet."""
        self.url, self.timeout, self.waits = url.rstrip("/"), timeout, waits
        self.name = mask_text(self.url)
        self.stopped = threading.Event()
        """Set it, and nothing is tried again."""
        self._key = key
        # A redirect would carry the key to another server.
        self._opener = urllib.request.build_opener(_NoRedirect())
        self._warned: set[str] = set()

    def probe(self) -> None:
        """See that somebody answers there, whatever it is.

        Raises:
            SurroundingsError: nobody does.
        """
        try:
            self._once("/models", None)
        except (urllib.error.HTTPError, UnreadableError):
            return
        except (OSError, HTTPException) as error:
            self._give_up(self._reason(error), 1, error)

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON that is answered to `body`.

        Raises:
            SurroundingsError: the endpoint refuses, or cannot be reached in all tries.
            UnreadableError: it answers something else than JSON in all tries.
        """
        for number, wait in enumerate([*self.waits, None], start=1):
            asked = 0.0
            try:
                return self._once(path, body)
            except UnreadableError:
                reason = "answered what is no JSON"
                if wait is None or self.stopped.is_set():
                    raise
            except (OSError, HTTPException) as error:
                reason = self._reason(error)
                is_passing = not isinstance(error, urllib.error.HTTPError) or error.code in _PASSING
                if not is_passing or wait is None or self.stopped.is_set():
                    self._give_up(reason, number, error)
                asked = _retry_after(error)
            self._warn(reason)
            self.stopped.wait(max(wait, asked))
        raise AssertionError("the last try returns or raises")

    def _once(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        end, content = time.monotonic() + self.timeout, bytearray()
        with self._opener.open(request, timeout=self.timeout) as response:
            while part := response.read1(1 << 16):
                content += part
                if time.monotonic() > end:
                    raise TimeoutError(f"no whole answer within {self.timeout:g} s")
                if len(content) > _LARGEST:
                    raise UnreadableError
        try:
            return json.loads(content)
        except ValueError as error:
            raise UnreadableError from error

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, urllib.error.HTTPError):
            detail = error.read(500).decode("utf-8", "replace") if error.fp else ""
            text = f"answered {error.code} {error.reason}: {' '.join(detail.split())[:200]}".rstrip(": ")
        else:
            inner = getattr(error, "reason", error)  # urllib wraps what went wrong
            text = first_line(inner) if isinstance(inner, BaseException) else str(inner)
        return mask_text(text.replace(self._key, MASK) if self._key else text)

    def _give_up(self, reason: str, tries: int, error: BaseException) -> NoReturn:
        again = f" (tried {tries} times)" if tries > 1 else ""
        raise SurroundingsError(
            f"--judge: {self.name}: {reason}{again}; what was answered is kept, the same command goes on"
        ) from error

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:  # once, not for each of hundreds of comparisons
            self._warned.add(reason)
            log.warning("%s: %s; trying again", self.name, reason)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: it is raised as an HTTPError."""


def _retry_after(error: BaseException) -> float:
    """Return the seconds that a server asks for; 0 where it asks for none, or for a date."""
    headers = getattr(error, "headers", None)
    value = headers.get("Retry-After", "") if headers is not None else ""
    return min(float(value), _LONGEST_WAIT) if value.isdigit() else 0.0
