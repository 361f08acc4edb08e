"""`--safe-config`: class paths are imported, so a configuration is code; of a stranger's only a list is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from orpo_lightning.errors import UsageError

FLAG = "--safe-config"
ALLOWED = (
    "torch.optim",
    "bitsandbytes.optim",
    "galore_torch",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "orpo_lightning",
)
"""What a class path may begin with."""
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
# Keys under which a text alone names a class, or a file with more keys.
_CLASSES = {"accelerator", "callbacks", "help", "logger", "objective", "optimizer", "plugins", "profiler"}
_CLASSES |= {"data", "fit", "model", "strategy", "test", "trainer", "validate"}
_CONFIG = ("c", "config")


def refuse_unlisted(words: Sequence[str]) -> None:
    """Where the words ask for it, stop at what a configuration must not name, before any of it is imported.

    From then on jsonargparse itself imports nothing else in this process, whatever a value looks like.

    Args:
        words: of the command line; the files they name are read.

    Raises:
        UsageError: naming the key and the class path.
    """
    named = list(_flags(words))
    files = [value for key, value in named if key in _CONFIG]
    if not any(key in ("safe-config", "safe_config") for key, _ in named) and not any(map(_asks, files)):
        return
    _enforce()
    try:
        for key, value in named:
            if key in _CONFIG:
                _check_file(value)
            else:
                _check(f"--{key}", key, _loaded(value, f"--{key}"), Path())
    except RecursionError:  # a file that names itself
        raise UsageError(f"{FLAG}: the files of this configuration name each other without end") from None


def enforce_denylist() -> None:
    """Let jsonargparse refuse class paths such as os.system, which it otherwise imports with a warning."""
    from jsonargparse import set_parsing_settings

    set_parsing_settings(import_path_denylist=[])


def _enforce() -> None:
    from jsonargparse import set_parsing_settings

    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED])


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield key and value of every flag; a flag that is given alone has the value `true`."""
    for place, word in enumerate(words):
        if not word.startswith("-") or word.lstrip("-")[:1].isdigit():
            continue
        if word.startswith("-c") and len(word) > 2:  # -cFILE
            yield "c", word[2:].removeprefix("=")
            continue
        key, equals, value = word.lstrip("-").partition("=")
        follows = words[place + 1] if place + 1 < len(words) else ""
        alone = "true" if follows.startswith("--") or not follows else follows
        yield key.rstrip("+"), value if equals else alone


def _asks(file: str) -> bool:
    """Tell whether a file itself asks to be taken for a stranger's, as those do that such a run saves."""
    try:
        content = _content(file)
    except UsageError:
        return False  # the parser says so
    sections = [content, *content.values()] if isinstance(content, dict) else []
    return any(isinstance(part, dict) and part.get("safe_config") is True for part in sections)


def _check_file(name: str) -> None:
    content = _content(name)
    if content is not None:
        _check(name, "", content, Path(name).expanduser().parent)


def _content(name: str) -> Any:
    """Return what stands in a YAML file, or in YAML given in its place; None where there is no such file."""
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = name  # the parser has the right words for a file that is not there
    return _loaded(text, name)


def _loaded(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        if where.startswith("--"):
            return text
        raise UsageError(f"{where}: not plain YAML: {' '.join(str(error).split())}") from error


def _check(where: str, key: str, value: Any, folder: Path) -> None:
    """Stop at the first class path in a value that is not allowed."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check(where, f"{key}.{name}" if key else str(name), item, folder)
    elif isinstance(value, list):
        for item in value:
            _check(where, key, item, folder)
    last = key.rpartition(".")[2].rstrip("+")
    place = where if where == f"--{key}" else f"{where}: {key}"
    if last == "trust_remote_code" and value is True:
        raise UsageError(f"{place} true runs code of that repository, which {FLAG} is to keep out")
    if not isinstance(value, str):
        return
    if last in _CLASSES and _check_part(key, value, folder):
        return
    names_class = last == "class_path" or (last in _CLASSES and _PATH.fullmatch(value))
    if names_class and "." in value and not is_allowed(value):
        raise UsageError(
            f"{place} {value} is not imported: with {FLAG} a class path must begin with "
            f"{', '.join(ALLOWED[:-1])} or {ALLOWED[-1]}"
        )


def _check_part(key: str, name: str, folder: Path) -> bool:
    """Check the file that a value names in place of the keys below it; return whether there is one."""
    found = False
    for path in {Path(name).expanduser(), folder / name}:
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, ValueError):
            continue
        if text is not None:
            found = True
            _check(str(path), key, _loaded(text, str(path)), path.parent)
    return found


def is_allowed(class_path: str) -> bool:
    """Tell whether a class path is on the list."""
    return any(class_path == prefix or class_path.startswith(f"{prefix}.") for prefix in ALLOWED)
