"""What documents say of commands agrees with the commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import yaml

from orpo_lightning.commands import doctor_fit
from orpo_lightning.commands.report import HELP
from orpo_lightning.runfolder import run_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_the_runs_that_are_set_side_by_side_are_folders_that_the_configs_make() -> None:
    made = set()
    for file in (ROOT / "configs").glob("*.yaml"):
        made.add(str(run_folder(yaml.safe_load(file.read_text()).get("run_dir"), [str(file)])))
    for text in ((ROOT / "README.md").read_text(), (DOCS / "report.md").read_text(), HELP):
        compared = re.findall(r"orpo[_-]lightning report ((?:runs/\S+ ?){2,})", text)
        assert compared
        assert set(" ".join(compared).split()) <= made


def test_what_needs_an_extra_is_preceded_by_its_installation() -> None:
    readme = (ROOT / "README.md").read_text()
    assert 0 < readme.find("'.[sweep]'") < readme.find("orpo_lightning sweep --config")
    for name, command in (("performance", "benchmark.py train"), ("smollm2", "scripts/smollm2")):
        text = (DOCS / f"{name}.md").read_text()
        assert command in text
        assert "pip install -c constraints.txt -e '.[dev]'" in text, name


def test_without_matplotlib_the_run_of_smollm2_still_ends_with_its_comparison(tmp_path: Path) -> None:
    python = tmp_path / "python"
    evaluates = '*evaluate*) echo "{}" > "$RUN_DIR/evaluation.json"'
    python.write_text(f'#!/bin/sh\ncase "$*" in *curves.py*) exit 1;; {evaluates};; esac\n')
    python.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "pairs.jsonl").touch()
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "smollm2", tmp_path / "pairs.jsonl", tmp_path],
        env={**os.environ, "PYTHON": str(python), "RUN_DIR": str(tmp_path / "run")},
        check=False,
    )
    assert done.returncode == 1
    assert (tmp_path / "smollm2_evaluation.json").read_text() == "{}\n"


def test_the_configurations_that_doctor_plans_are_named() -> None:
    text = " ".join((DOCS / "choosing.md").read_text().split())
    said = re.search(r"At the end it plans (.*?) of the shipped configurations", text)
    assert said
    assert tuple(re.findall(r"`(\w+)`", said[1])) == doctor_fit._NAMES
