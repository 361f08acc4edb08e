"""What a cache's name depends on: else tokens of an older rule, reader or library would be found."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from orpo_lightning.data import cache_key as keys
from orpo_lightning.data.cache import Reading
from orpo_lightning.data.cache_key import cache_key
from orpo_lightning.data.sources import Rows

DATA = Path(keys.__file__).parent


@pytest.fixture(scope="module")
def key() -> Any:
    source, tokenizer = Rows("x.jsonl", "of its bytes", lambda: iter(())), tiny_tokenizer("chatml")
    return lambda: cache_key(source, tokenizer, Reading(None, None, {"max_length": 99}))


def imported(name: str) -> set[str]:
    """Return the modules of the data folder that a module of it imports."""
    tree = ast.parse((DATA / f"{name}.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    prefix = "orpo_lightning.data"
    inside = [node for node in found if node.module.startswith(prefix)]
    names = {alias.name for node in inside if node.module == prefix for alias in node.names}
    return names | {node.module.split(".")[2] for node in inside if node.module != prefix}


def test_every_module_between_a_file_and_its_tokens_is_part_of_the_name() -> None:
    reached, ahead = set[str](), {"readers", "records", "tokenization"}
    while ahead:
        name = ahead.pop()
        reached.add(name)
        if name != "shapes":  # a folder; all its files are part of the name
            ahead |= imported(name) - reached
    assert {module.__name__.rpartition(".")[2] for module in keys._RULES} >= reached


@pytest.mark.parametrize("module", ["columns", "csv_reader", "json_reader", "json_stream", "arrow_reader"])
def test_a_mended_reader_finds_no_old_tokens(module: str, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, source = key(), inspect.getsource
    mended = f"orpo_lightning.data.{module}"
    monkeypatch.setattr(inspect, "getsource", lambda of: source(of) + "#" * (of.__name__ == mended))
    assert key() != before


@pytest.mark.parametrize("package", ["tokenizers", "transformers", "jinja2"])
def test_another_version_of_a_library_finds_no_old_tokens(
    package: str, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, versions = key(), keys.versions_of
    assert key() == before
    monkeypatch.setattr(keys, "versions_of", lambda names: versions(names) | {package: "0.0"})
    assert key() != before
