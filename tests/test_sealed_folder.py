"""A sealed folder is whole or not there, with everything in it named, wherever a link says that it is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from orpo_lightning.errors import CheckpointError
from orpo_lightning.using.sealed_folder import (
    MANIFEST,
    bring_back,
    check_seal,
    remove_unfinished,
    staged,
)


def write(folder: Path, content: str) -> None:
    """Write an export of one file, and one in a folder of its own."""
    with staged(folder, "the test", "make room") as staging:
        (staging / "templates").mkdir(parents=True)
        (staging / "weights").write_text(content)
        (staging / "templates" / "tools.jinja").write_text("tools")


def test_a_folder_within_is_sealed_file_by_file_and_can_be_entered(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write(folder, "one")
    assert check_seal(folder) == [folder / "templates" / "tools.jinja", folder / "weights"]
    assert "  templates/tools.jinja\n" in (folder / MANIFEST).read_text()
    ordinary = tmp_path / "ordinary"
    ordinary.mkdir()
    assert stat.S_IMODE((folder / "templates").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    (folder / "templates" / "tools.jinja").write_text("other")
    with pytest.raises(CheckpointError, match=r"tools\.jinja is not what was written"):
        check_seal(folder)


def test_what_a_link_leads_to_is_exchanged_and_the_link_stays(tmp_path: Path) -> None:
    link, there = tmp_path / "run" / "adapter-best", tmp_path / "big" / "best"
    link.parent.mkdir()
    there.mkdir(parents=True)
    link.symlink_to(there)
    for content in ("one", "two", "three"):
        write(link, content)
        assert link.is_symlink()
        assert (there / "weights").read_text() == content
    assert [path.name for path in there.parent.iterdir()] == ["best"]
    assert [path.name for path in link.parent.iterdir()] == ["adapter-best"]


def test_behind_a_link_an_exchange_that_was_cut_short_is_undone(tmp_path: Path) -> None:
    link, there = tmp_path / "adapter-best", tmp_path / "big" / "best"
    link.symlink_to(there)
    write(link, "one")
    there.rename(there.with_name(".best.old"))
    bring_back(link)
    assert (there / "weights").read_text() == "one"


def test_what_a_killed_process_had_begun_is_removed_and_nothing_beside_it(tmp_path: Path) -> None:
    for name in (".adapter.4711", ".adapter-best.4711", ".adapter.old", "adapter", ".adapter.notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()
    remove_unfinished(tmp_path / "adapter")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".adapter-best.4711", ".adapter.old", "adapter", ".adapter.notes"}
