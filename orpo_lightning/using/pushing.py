"""Weights for the hub: the files of a sealed folder, a card of what they are made of, and the sending."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orpo_lightning.data.hub_errors import is_refused, is_unreachable, kinds
from orpo_lightning.errors import SurroundingsError, UsageError, first_line
from orpo_lightning.hub_access import with_retries
from orpo_lightning.run_settings import settings_of
from orpo_lightning.using.cards import base_words, parted, table, with_metadata
from orpo_lightning.using.model_files import ADAPTER_CONFIG, evaluation_of, json_of
from orpo_lightning.using.sealed_folder import (
    MANIFEST,
    check_seal,
    digest_of_bytes,
    digests_of_weights,
    name_in,
    read_manifest,
)
from orpo_lightning.using.trained import Trained

_UNKNOWN = "not known"


class Parcel(NamedTuple):
    """What will be sent."""

    files: dict[str, Path | bytes]
    """By their names in the repository; what is written anew is at hand."""
    card: str
    note: str = ""
    """What the card lacks, and why."""

    def sizes(self) -> list[tuple[str, int]]:
        """Return the bytes of each file."""
        return [
            (name, len(file) if isinstance(file, bytes) else file.stat().st_size)
            for name, file in sorted(self.files.items())
        ]


def pack(trained: Trained, base: str | None) -> Parcel:
    """Return the files of a model, each as it was written, and its card with data and licences.

    Args:
        trained: an adapter or a whole model, in a folder here.
        base: hub id of the base, in place of what the adapter names.

    Raises:
        UsageError: the model is on the hub, or its base is a folder that nobody else has.
        CheckpointError: a file is missing or another than was written.
    """
    folder = Path(trained.weights).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{trained.name}: there is no such folder here, and only a folder can be sent")
    files: dict[str, Path | bytes] = {name_in(folder, file): file for file in check_seal(folder)}
    named = _named_base(folder, files)
    if base is None and Path(named).expanduser().is_dir():
        raise UsageError(
            f"{trained.name}: its base {named} is a folder here, which says nothing to anybody else: "
            "name the base's hub id with --base"
        )
    if base is not None:
        files |= _renamed(folder, files, base)
    evaluation, note = _evaluation(trained)
    card = _card(trained, folder, named, base, _figures(evaluation) if evaluation else [])
    files["README.md"] = card.encode()
    files[MANIFEST] = _manifest(folder, files).encode()
    return Parcel(files, card, note)


def _named_base(folder: Path, files: Mapping[str, Any]) -> str:
    """Return what the weights are based on, as their own files say."""
    for file, key in ((ADAPTER_CONFIG, "base_model_name_or_path"), ("merge.json", "base")):
        if file in files:
            return str(json.loads((folder / file).read_text(encoding="utf-8"))[key])
    metadata, _ = parted(_readme(folder))
    return str(metadata.get("base_model") or "")


def _renamed(folder: Path, files: Mapping[str, Any], base: str) -> dict[str, bytes]:
    """Return the files that name the base, with another name of it."""
    renamed = {}
    for name, key in ((ADAPTER_CONFIG, "base_model_name_or_path"), ("merge.json", "base")):
        if name in files:
            facts = json.loads((folder / name).read_text(encoding="utf-8"))
            # A revision is one of the repository that was named before.
            revision = facts.get("revision") if facts.get(key) == base else None
            renamed[name] = {**facts, key: base, "revision": revision}
    if "merge.json" in renamed:
        renamed["merge.json"]["adapter"] = Path(renamed["merge.json"]["adapter"]).name
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in renamed.items()}


def _readme(folder: Path) -> str:
    file = folder / "README.md"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _manifest(folder: Path, files: Mapping[str, Path | bytes]) -> str:
    """Return the manifest anew: of a file that was just compared the digest is known."""
    digests = read_manifest(folder)
    digests |= {name: digest_of_bytes(file) for name, file in files.items() if isinstance(file, bytes)}
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests) if name != MANIFEST)


def _card(trained: Trained, folder: Path, named: str, base: str | None, figures: Sequence[str]) -> str:
    metadata, body = parted(_readme(folder))
    if base is not None and named and base != named:
        body = body.replace(base_words(named, trained.revision), base_words(base, None)).replace(named, base)
        metadata = {**metadata, "base_model": base}
    base_licence = _licence("model", base or named)
    merged = json_of(str(folder), "merge.json") or {}
    sources = merged.get("data") or data_sources(trained)
    data = [(source, _licence("dataset", source)) for source in sources]
    on_hub = [source.partition(":")[0].partition("@")[0] for source, _ in data if _is_hub_id(source)]
    metadata = {
        **metadata,
        **({"license": base_licence} if base_licence != _UNKNOWN else {}),
        **({"datasets": on_hub} if on_hub else {}),
    }
    origins = [("base: " + (base or named), base_licence), *((f"data: {name}", of) for name, of in data)]
    lines = [
        body.rstrip(),
        "",
        "## Made of",
        "",
        *table("what", "licence", origins),
        *figures,
    ]
    return with_metadata(metadata, "\n".join(lines) + "\n")


def data_sources(trained: Trained) -> list[str]:
    """Return the names of the training data: of a file its name alone, of the hub the id."""
    named = settings_of(trained.config, "data").get("train")
    sources = named if isinstance(named, list) else [named] if named else []
    names = [str(one["path"] if isinstance(one, Mapping) else one) for one in sources]
    return [_public_name(name) for name in names]


def _public_name(source: str) -> str:
    return source if _is_hub_id(source) else Path(source).name


def _is_hub_id(name: str) -> bool:
    path = name.partition(":")[0].partition("@")[0]
    return path.count("/") in (1, 2) and not Path(path).exists() and not Path(path).suffix


def _licence(kind: str, name: str) -> str:
    """Return the licence of a model or data set, as its card says; of one that cannot be asked, not known."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(parted(_readme(folder))[0].get("license") or _UNKNOWN)
    if not _is_hub_id(name):
        return _UNKNOWN
    from huggingface_hub import HfApi

    repository = "/".join(name.partition(":")[0].partition("@")[0].split("/")[:2])
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        card = ask(repository, timeout=10).card_data
    except Exception:  # whatever the reason, it is no reason not to send: the card says that it is not known
        return _UNKNOWN
    return str((card.get("license") if card else None) or _UNKNOWN)


def _evaluation(trained: Trained) -> tuple[dict[str, Any], str]:
    """Return what `evaluate` wrote of these weights, nothing where it did not; and why nothing, in a line."""
    file = None if trained.run is None else trained.run / f"{evaluation_of(trained.weights)}.json"
    if file is None or not file.is_file():
        return {}, ""
    found = json.loads(file.read_text(encoding="utf-8"))
    if found.get("weights") == digests_of_weights(Path(trained.weights)):
        return found, ""
    return {}, (
        f"{file} does not say that it is of these weights: its figures are left out of the card; "
        f"`orpo-lightning evaluate {trained.name}` writes it anew"
    )


def _figures(evaluation: Mapping[str, Any]) -> list[str]:
    """Return an evaluation's figures with their intervals, as lines of a card."""
    data = evaluation["data"]
    if named := data["origin"] == "--pairs":  # whether these were held out only their owner knows
        origin = " + ".join(map(_public_name, data["name"].split(" + ")))
    else:
        origin = f"{data['origin'].partition(' of ')[0]} of the run"  # behind it is the path of a folder here
    rows = [
        ("pairs from", origin),
        ("pairs, prompts", f"{evaluation['pairs']}, {evaluation['prompts']}"),
    ]
    parts = {**evaluation["models"], "change": evaluation.get("change") or {}}
    for part, figures in parts.items():
        rows += [(f"{part}: {name}", words) for name, value in figures.items() if (words := _words(value))]
    return [f"## {'Evaluation' if named else 'Held-out pairs'}", "", *table("figure", "value", rows)]


def _words(value: Any) -> str:
    """Return a figure of evaluation.json with its 95 % interval; of what is none, nothing."""
    if not isinstance(value, Mapping):
        return ""
    return f"{value['mean']:.4g} (95 % {value['low']:.4g} to {value['high']:.4g})"


def send(parcel: Parcel, repository: str, *, private: bool, message: str) -> str:
    """Send all files in one commit, make the repository where it is not there; return the commit's address.

    Raises:
        UsageError: no repository can be called so.
        SurroundingsError: no token, no permission, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError

    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise SurroundingsError("HF_HUB_OFFLINE is set: nothing can be sent")
    if get_token() is None:
        raise SurroundingsError("no token for the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="orpo-lightning")

    def commit() -> Any:
        # Operations belong to one try: the library marks in them what it has done.
        operations = [
            CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file)
            )
            for name, file in sorted(parcel.files.items())
        ]
        return api.create_commit(repository, operations, commit_message=message)

    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        return str(with_retries(commit, repository).commit_url)
    except HFValidationError as error:
        raise UsageError(f"REPO_ID: {first_line(error)}") from error
    except Exception as error:
        explained = _explained(error, repository)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, repository: str) -> SurroundingsError | None:
    statuses = [answer.status_code for answer in _answers(error)]
    owner = repository.partition("/")[0]
    if 403 in statuses:
        return SurroundingsError(
            f"{repository}: the token may not write there: it needs the right to write to what {owner} owns"
        )
    if is_refused(error):
        return SurroundingsError(
            f"{repository}: the hub refuses the token: `hf auth login` again, or set HF_TOKEN"
        )
    if is_unreachable(error) or "NetworkError" in kinds(error) or "RemoteProtocolError" in kinds(error):
        return SurroundingsError(
            f"{repository}: the hub does not take it now ({first_line(error)}): run again later; what came "
            "whole is not sent again"
        )
    if statuses:
        return SurroundingsError(f"{repository}: the hub refuses it: {first_line(error)}")
    return None


def _answers(error: BaseException | None) -> Iterable[Any]:
    while error is not None:
        answer = getattr(error, "response", None)
        if answer is not None:
            yield answer
        error = error.__cause__ or error.__context__
