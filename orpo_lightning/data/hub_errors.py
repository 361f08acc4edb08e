"""What went wrong between us and the hub, in one line each."""

from __future__ import annotations

from collections.abc import Iterator

from orpo_lightning.errors import DataError, SurroundingsError, UserError, first_line

GRANT = (
    "access must be granted first: ask for it on its page of the hub, then run `hf auth login` (or set "
    "HF_TOKEN)"
)
_UNREACHABLE = {
    "ConnectionError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TimeoutException",
    "TransportError",
}
_UNUSABLE = {"ArrowException", "DatasetsError", "FileNotFoundError", "RuntimeError", "ValueError"}
_REFUSED = {401, 403}
_TRY_AGAIN = 429
_SERVER_FAULT = 500
_WRONG_LENGTH = "Consistency check failed"


def is_unreachable(error: BaseException) -> bool:
    """Tell whether the hub did not answer, or only that it cannot now, or lost a part of the answer."""
    return (
        bool(kinds(error) & _UNREACHABLE)
        or any(status == _TRY_AGAIN or status >= _SERVER_FAULT for status in _statuses(error))
        or _is_cut(error)
    )


def is_passing(error: BaseException) -> bool:
    """Tell whether a download failed in a way that its client did not try again by itself."""
    found = kinds(error)
    if found & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return False  # nobody answers, or offline is asked for; the client has tried for long enough
    failed = any(status >= _SERVER_FAULT for status in _statuses(error))
    return failed or _is_cut(error) or ("NetworkError" in found and "ConnectError" not in found)


def is_gated(error: BaseException) -> bool:
    """Tell whether access to the repository is granted by its owner only."""
    return "GatedRepoError" in kinds(error) or " a gated " in first_line(error)


def is_refused(error: BaseException) -> bool:
    """Tell whether the hub takes the token for none of its own, or not for one that may do this."""
    return bool(_statuses(error) & _REFUSED)


def explain(error: Exception, name: str, revision: str | None, local: str) -> UserError | None:
    """Return what an error of `datasets` or `huggingface_hub` means; None where it is no matter of the hub.

    Args:
        error: what was raised.
        name: of the data set.
        revision: that was asked for.
        local: names a file here that may have been meant, or nothing.
    """
    found, text = kinds(error), first_line(error)
    if is_gated(error):
        return SurroundingsError(f"{name}: {GRANT}")
    if "RevisionNotFoundError" in found:
        return DataError(f"{name}: there is no revision {revision!r} of it on the hub")
    if is_unreachable(error):
        return SurroundingsError(
            f"{name}: there is no such file or folder here{local}, and the hub cannot be reached: {text}"
        )
    if found & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return DataError(
            f"{name}: there is no such file or folder here{local}, and no such data set on the hub "
            "(a private one needs `hf auth login`)"
        )
    if is_refused(error):
        return SurroundingsError(f"{name}: the hub refuses the token: `hf auth login` again, or set HF_TOKEN")
    if "scripts" in text:
        return DataError(
            f"{name}: would run code of its own, which is refused; try @refs/convert/parquet behind it"
        )
    if isinstance(error, OSError) and error.errno is not None:  # a full disk, say
        return None
    if found & _UNUSABLE:
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


def kinds(error: BaseException) -> set[str]:
    """Return the names of the classes of an error and of all it was raised from."""
    return {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}


def _statuses(error: BaseException) -> set[int]:
    answers = (getattr(one, "response", None) for one in _chain(error))
    return {int(answer.status_code) for answer in answers if answer is not None}


def _is_cut(error: BaseException) -> bool:
    return any(_WRONG_LENGTH in str(one) for one in _chain(error))
