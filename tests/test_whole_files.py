"""Files that appear whole, and files that grow by lines, when something goes wrong while they are written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orpo_lightning.errors import SurroundingsError
from orpo_lightning.whole_files import append_line, json_objects, whole_file


def cut_short(file: Path, error: BaseException) -> None:
    with whole_file(file, "the page", "name another disk") as staging:
        staging.write_text("half")
        raise error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SurroundingsError),
        (OSError(errno.EACCES, "Permission denied"), PermissionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_is_cut_short_leaves_the_old_file_and_nothing_else(
    error: BaseException, expected: type[BaseException], tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text("old")
    with pytest.raises(expected):
        cut_short(file, error)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert file.read_text() == "old"
    with whole_file(file, "the page", "name another disk") as staging:
        staging.write_text("new")
        assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert file.read_text() == "new"


def test_of_lines_a_kill_at_any_byte_loses_the_last_alone(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    rows = [{"key": "ä"}, {"key": "b", "n": 2}, {"key": "c"}]
    for row in ('{"key": "ä"}', '{"key": "b", "n": 2}'):
        append_line(file, row, "the results", "name another disk")
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        file.write_bytes(whole[:size])
        append_line(file, '{"key": "c"}', "the results", "name another disk")
        # Only the end of the line was lost: the object is whole.
        kept = rows if size == len(whole) - 1 else [rows[0], rows[2]]
        assert list(json_objects(file)) == kept
    file.write_text('[1]\n"text"\n{"key": 1}\n')
    assert list(json_objects(file)) == [{"key": 1}]
    assert list(json_objects(tmp_path / "none.jsonl")) == []
