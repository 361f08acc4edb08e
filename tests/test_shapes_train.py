"""Every shape of rows trains: from a file, and through a hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from shape_samples import SAMPLES

from orpo_lightning.data.records import Records

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Train on every shape, first from files, then from the hub; return what each run reports, by shape."""
    folder = tmp_path_factory.mktemp("shapes")
    repositories = {}
    for name, rows in SAMPLES.items():
        repositories[f"pairs/{name.replace(' ', '-')}"] = folder / name
        (folder / name).mkdir()
        content = "\n".join(json.dumps(row) for row in rows)
        (folder / name / "train.jsonl").write_text(content)
    files = [str(folder / name / "train.jsonl") for name in SAMPLES]
    with HubServer(datasets=repositories) as server:
        environment = server.environment(folder / "home")
        environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        sources = json.dumps([*files, *repositories])
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "shapes_run.py"), tiny_base, str(folder), sources],
            env=environment, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2 * len(SAMPLES)
    return {name: [found[i], found[i + len(SAMPLES)]] for i, name in enumerate(SAMPLES)}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("place", ["file", "hub"])
def test_every_shape_trains_two_steps(name: str, place: str, trained: Any) -> None:
    run = trained[name][["file", "hub"].index(place)]
    assert run["steps"] == 2
    assert run["moved"]
    assert run["rows"] == len(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_and_the_hub_give_the_same_shape_and_pairs(name: str, trained: Any) -> None:
    file, hub = trained[name]
    assert file == hub
    records = Records(SAMPLES[name], "sample")
    assert file["pairs"] == sum(hasattr(record, "chosen") for record in records)
    assert file["shape"] == records.shape
