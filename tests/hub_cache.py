"""What a download of the hub leaves behind, without one."""

from __future__ import annotations

import shutil
from pathlib import Path


def in_cache(cache: Path, name: str, folder: Path | str, commit: str = "a" * 40) -> None:
    """Put a folder into a cache of the hub, as the newest commit of a repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit, dirs_exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
