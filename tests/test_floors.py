"""Imports point down or sideways between the floors of the package, never up."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "orpo_lightning"
# A module's floor is that of its longest prefix here. Floor 0 is pure: standard library and torch only.
FLOORS = {
    "errors": 0,
    "adapter_state": 0,
    "hardware": 0,
    "head": 0,
    "logps": 0,
    "vocabulary_blocks": 0,
    "intervals": 0,
    "base_logps": 1,
    "bootstrap": 1,
    "versions": 0,
    "batching": 0,
    "objectives": 0,
    "planning": 0,
    "planning.shapes": 1,
    "data": 1,
    "data.flags": 0,
    "data.left_out": 0,
    "data.messages": 0,
    "data.columns": 0,
    "data.records": 0,
    "data.scripts_of_text": 0,
    "data.scores": 0,
    "data.shapes": 0,
    "data.values": 0,
    "data.datamodule": 2,
    "checkup": 1,
    "pages": 1,
    "observing": 1,
    "observing.evidence": 0,
    "observing.held_out": 0,
    "observing.finding": 0,
    "observing.findings": 0,
    "observing.diverging": 0,
    "observing.length_only": 0,
    "observing.trend": 0,
    "observing.defaults": 2,
    "observing.files": 0,
    "observing.displacement": 0,
    "observing.plots": 0,
    "observing.record": 0,
    "observing.logger": 2,
    "observing.tensorboard": 2,
    "modeling": 1,
    "initialization": 1,
    "lean_lora": 1,
    "rate_curve": 0,
    "recomputation": 1,
    "policy": 1,
    "sweeping": 1,
    "token_budget": 1,
    "judging": 1,
    "judging.pairs": 2,
    "judging.scoring": 2,
    "judging.canary": 2,
    "judging.answers": 2,
    "judging.evaluation": 2,
    "scoring": 1,
    "sharding": 1,
    "sharded_strategy": 2,
    "strategies": 0,
    "heartbeat": 0,
    "torchrun": 0,
    "layouts": 1,
    "shared_attention": 0,
    "shared_attention.interface": 1,
    "schedules": 1,
    "galore": 1,
    "metrics": 2,
    "using": 1,
    "using.gguf": 0,
    "using.proof_pairs": 2,
    "using.sealed_folder": 0,
    "using.vllm_rules": 0,
    "module": 2,
    "callbacks": 2,
    "runfolder": 0,
    "run_log": 0,
    "masking": 0,
    "durations": 0,
    "full_disk": 0,
    "whole_files": 0,
    "safe_config": 3,
    "saved_config": 3,
    "hub_access": 1,
    "base_errors": 1,
    "run_lock": 0,
    "file_locks": 0,
    "run_settings": 0,
    "stop_signals": 0,
    "checkpoint_files": 0,
    "checkpoint_io": 2,
    "weights_digest": 0,
    "resuming": 1,
    "cli": 3,
    "cli_errors": 3,
    "cli_fill": 3,
    "cli_parser": 3,
    "cli_run": 3,
    "commands": 3,
    "__main__": 4,
}
LIGHTNING_FROM = 2
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor(name: str) -> int | None:
    while name not in FLOORS and "." in name:
        name = name.rpartition(".")[0]
    return FLOORS.get(name)


def imported(path: Path) -> set[str]:
    """Return the full names of all modules and members that a file imports, wherever in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_package(name: str) -> str | None:
    return name.removeprefix("orpo_lightning.") if name.startswith("orpo_lightning.") else None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_stands_on_a_floor(path: Path) -> None:
    assert module_name(path) == "" or floor(module_name(path)) is not None


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_import_points_up(path: Path) -> None:
    own = floor(module_name(path))
    if own is None:  # the package itself, which hands out its members lazily
        return
    inner = {name for name in map(of_package, imported(path)) if name}
    up = {name for name in inner if (floor(name) or 0) > own}
    assert not up, f"floor {own} imports from above: {sorted(up)}"


@pytest.mark.parametrize("path", [path for path in MODULES if floor(module_name(path)) == 0], ids=module_name)
def test_the_ground_floor_imports_the_standard_library_and_torch_alone(path: Path) -> None:
    outer = {name.partition(".")[0] for name in imported(path)} - {"orpo_lightning"}
    assert outer <= {*sys.stdlib_module_names, "torch"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_lightning_is_imported_from_floor_two_up_and_never_by_its_other_name(path: Path) -> None:
    outer = {name.partition(".")[0] for name in imported(path)}
    assert "pytorch_lightning" not in outer
    if (floor(module_name(path)) or 0) < LIGHTNING_FROM:
        assert "lightning" not in outer


def test_the_check_sees_an_import_that_points_up(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from orpo_lightning.module import PreferenceModule\n")
    assert [floor(of_package(name) or "") for name in imported(file)] == [2]
