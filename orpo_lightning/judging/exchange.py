"""Asking an HTTP endpoint for JSON: within a time, and again where it fails for a moment."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, NoReturn, TypeVar

from orpo_lightning.errors import SurroundingsError, first_line
from orpo_lightning.masking import MASK, mask_text

log = logging.getLogger(__name__)
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""What a server answers that may answer another way a little later."""
_OF_THE_QUESTION = {400, 413, 422}
"""What it answers where this question may be at fault: too long for its context, stopped by a filter."""
_LONGEST_WAIT = 60.0
_LARGEST = 8 << 20
"""Bytes of an answer."""


_SHOWN = 200
"""Characters of an answer that stand in a message."""
T = TypeVar("T")


class UnreadableError(ValueError):
    """What came back is not what was asked for."""


class RefusedError(ValueError):
    """The endpoint does not take this question; it may well take others."""


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
            self.give_up(self._reason(error), 1, error)

    def post(self, path: str, body: Any, read: Callable[[Any], T], what: str) -> T:
        """Return what is read of the JSON that is answered to `body`.

        Args:
            path: behind the URL.
            body: is sent as JSON.
            read: takes what is wanted from an answer; raises LookupError or TypeError where it is not there.
            what: is wanted, for messages.

        Raises:
            RefusedError: the endpoint does not take this body.
            SurroundingsError: it refuses whatever is asked, cannot be reached, or answers something else, in
                all tries.
        """
        for number, wait in enumerate([*self.waits, None], start=1):
            asked = 0.0
            try:
                return self._wanted(self._once(path, body), read, what)
            except UnreadableError as error:
                reason = f"answered {error}"
                if wait is None or self.stopped.is_set():
                    self.give_up(reason, number, error)
            except (OSError, HTTPException) as error:
                reason, status = self._reason(error), getattr(error, "code", None)
                if status in _OF_THE_QUESTION:
                    raise RefusedError(reason) from error
                is_passing = status is None or status in _PASSING
                if not is_passing or wait is None or self.stopped.is_set():
                    self.give_up(reason, number, error)
                asked = _retry_after(error)
            self._warn(reason)
            self.stopped.wait(max(wait, asked))
        raise AssertionError("the last try returns or raises")

    def _wanted(self, found: Any, read: Callable[[Any], T], what: str) -> T:
        try:
            return read(found)
        except (LookupError, TypeError) as error:
            said = self._brief(json.dumps(found, ensure_ascii=False))
            raise UnreadableError(f"what is no {what}: {said}") from error

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
                    raise UnreadableError(f"more than {_LARGEST:,} bytes")
        try:
            return json.loads(content)
        except ValueError as error:
            said = self._brief(content[:1000].decode("utf-8", "replace"))
            raise UnreadableError(f"what is no JSON: {said}") from error

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, urllib.error.HTTPError):
            detail = error.read(500).decode("utf-8", "replace") if error.fp else ""
            text = f"answered {error.code} {error.reason}: {self._brief(detail)}".rstrip(": ")
        else:
            inner = getattr(error, "reason", error)  # urllib wraps what went wrong
            text = first_line(inner) if isinstance(inner, BaseException) else str(inner)
        return self._masked(text)

    def _brief(self, said: str) -> str:
        """Return the beginning of what a server said, on one line."""
        return self._masked(" ".join(said.split()))[:_SHOWN]

    def _masked(self, text: str) -> str:
        return mask_text(text.replace(self._key, MASK) if self._key else text)

    def give_up(self, reason: str, tries: int, error: BaseException) -> NoReturn:
        """Raise the SurroundingsError of an endpoint that cannot be used, and why."""
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
