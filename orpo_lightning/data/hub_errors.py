"""What went wrong between us and the hub, in one line each."""

from __future__ import annotations

from collections.abc import Iterator

from orpo_lightning.errors import DataError, SurroundingsError, UserError, first_line

_UNREACHABLE = {
    "ConnectionError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TimeoutException",
    "TransportError",
}
_UNUSABLE = {"ArrowException", "DatasetsError", "FileNotFoundError", "RuntimeError", "ValueError"}
_TRY_AGAIN = 429
_SERVER_FAULT = 500


def is_unreachable(error: BaseException) -> bool:
    """Tell whether the hub did not answer, or only that it cannot now."""
    return bool(_kinds(error) & _UNREACHABLE) or any(
        status == _TRY_AGAIN or status >= _SERVER_FAULT for status in _statuses(error)
    )


def explain(error: Exception, name: str, revision: str | None, local: str) -> UserError | None:
    """Return what an error of `datasets` or `huggingface_hub` means; None where it is no matter of the hub.

    Args:
        error: what was raised.
        name: of the data set.
        revision: that was asked for.
        local: names a file here that may have been meant, or nothing.
    """
    kinds, text = _kinds(error), first_line(error)
    if "GatedRepoError" in kinds or "gated" in text or _statuses(error) & {401, 403}:
        return SurroundingsError(
            f"{name}: access must be granted first: ask for it on the data set's page of the hub, then run "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if "RevisionNotFoundError" in kinds:
        return DataError(f"{name}: there is no revision {revision!r} of it on the hub")
    if is_unreachable(error):
        return SurroundingsError(
            f"{name}: there is no such file or folder here{local}, and the hub cannot be reached: {text}"
        )
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return DataError(
            f"{name}: there is no such file or folder here{local}, and no such data set on the hub "
            "(a private one needs `hf auth login`)"
        )
    if "scripts" in text:
        return DataError(
            f"{name}: would run code of its own, which is refused; try @refs/convert/parquet behind it"
        )
    if isinstance(error, OSError) and error.errno is not None:  # a full disk, say
        return None
    if kinds & _UNUSABLE:
        inner = first_line(error.__cause__) if error.__cause__ is not None else ""
        return DataError(f"{name}: cannot be loaded: {text}{f': {inner}' if inner else ''}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


def _statuses(error: BaseException) -> set[int]:
    answers = (getattr(one, "response", None) for one in _chain(error))
    return {int(answer.status_code) for answer in answers if answer is not None}
