"""Data sets of the hub through the real clients, from a hub on loopback: rows, splits, revisions, faults."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import GATED_ANONYMOUS, GATED_NOT_ALLOWED, HubServer, write_ultrafeedback

from orpo_lightning.data.hub_errors import explain, is_unreachable
from orpo_lightning.errors import DataError, SurroundingsError

ROOT = Path(__file__).parent.parent
# The clients read HF_ENDPOINT when they are imported. Nobody needs to wait between their tries.
CLIENT = """
import json, sys, time
time.sleep = lambda seconds: None
from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.sources import read_rows, source_fingerprint
from orpo_lightning.errors import UserError

for source in sys.argv[1:]:
    try:
        rows = list(read_rows(source))
        found = {"rows": [row.detail if isinstance(row, LeftOut) else row for row in rows],
                 "places": [row.where for row in rows], "fingerprint": source_fingerprint(source)}
    except UserError as error:
        found = {"error": [type(error).__name__, str(error)]}
    print("FOUND", json.dumps([source, found], default=str))
"""
DATES = [{"prompt": "When?", "chosen": "2024-01-01", "rejected": "2024-01-02 10:00:00"}] * 3
MIXED = [
    {"prompt": "a", "chosen": [{"role": "assistant", "content": "5"}], "rejected": "null"},
    {
        "prompt": "b",
        "chosen": [{"role": "assistant", "content": [{"type": "text"}], "more": 1}],
        "rejected": "7",
    },
]
CONFIGS = """---
configs:
- config_name: one
  data_files:
  - split: train
    path: one/train.csv
  - split: test
    path: one/test.csv
- config_name: two
  data_files: two/train.csv
  sep: ";"
---
"""


def write_repositories(folder: Path) -> dict[str, Path]:
    """Write the data sets to serve; return their folders by id."""
    files = {
        "dates/train.jsonl": "\n".join(map(json.dumps, DATES)),
        "old-dates/train.jsonl": json.dumps(DATES[0]),
        "mixed/data/train.json": json.dumps(MIXED, indent=1),
        "configs/README.md": CONFIGS,
        "configs/one/train.csv": "prompt,chosen,rejected\n1,2.50,NA\n",
        "configs/one/test.csv": "prompt,chosen,rejected\nx,true,\n",
        "configs/two/train.csv": "prompt;chosen;rejected\na;b;c\n",
        "broken/train.jsonl": '{"a": 1}\n{"a": \n{"a": 3}\n',
        "script/script.py": "raise SystemExit",
        "empty/README.md": "Nothing yet.",
        "gated/train.jsonl": "{}",
        "closed/train.jsonl": "{}",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_ultrafeedback(folder / "pairs", train=5, test=3)
    # Two files, whose rows are counted through.
    for number in range(2):
        table = pyarrow.table({"prompt": [f"{number}-{row}" for row in range(2)]})
        (folder / "parts").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, folder / "parts" / f"train-{number:05}-of-00002.parquet")
    names = ["dates", "mixed", "configs", "broken", "script", "empty", "gated", "closed", "pairs", "parts"]
    return {f"o/{name}": folder / name for name in names} | {"o/dates@old": folder / "old-dates"}


class Visits:
    """What the sources gave to one process after the other."""

    def __init__(self, server: HubServer, home: Path) -> None:
        self._environment = server.environment(home) | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        self._home = home

    def read(self, *sources: str, **environment: str) -> dict[str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *sources],
            env=self._environment | environment,
            cwd=self._home,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        return dict(json.loads(line.removeprefix("FOUND")) for line in lines)


SOURCES = [
    "o/dates", "o/dates@old", "o/dates@new", "o/mixed", "o/configs", "o/configs/one", "o/configs/one:test",
    "o/configs/two", "o/configs/three", "o/configs/one:valid", "o/dates:train[1:2]", "o/dates:train[2:]",
    "o/broken", "o/script",
    "o/empty", "o/gated", "o/closed", "o/nothing", "o/pairs:test_prefs", "o/pairs", "o/parts", "data/trian",
    "o/pairs:train_prefs", "o/pairs:train_prefs[40%:60%]",
]  # fmt: skip


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Any]]:
    """What is found online, then offline, then with the hub gone; and in another home."""
    folder = tmp_path_factory.mktemp("hub")
    repositories = write_repositories(folder)
    (folder / "home" / "data" / "train").mkdir(parents=True)
    (folder / "other").mkdir()
    with HubServer(datasets=repositories) as server:
        server.faults["/o/gated/"] = repeat(GATED_ANONYMOUS)
        server.faults["/o/closed/"] = repeat(GATED_NOT_ALLOWED)
        visits = Visits(server, folder / "home")
        online = visits.read(*SOURCES)
        requests = list(server.requests)
        again = Visits(server, folder / "other").read("o/dates", "o/pairs:test_prefs")
    kept = ["o/dates", "o/dates@old", "o/configs/one:test", "o/mixed", "o/pairs:test_prefs"]
    gone = visits.read("o/dates", "o/pairs:test_prefs@other", "o/nothing")
    return {
        "online": online,
        "requests": {line: None for line in requests},
        "again": again,
        "offline": visits.read(*kept, "o/nothing", HF_HUB_OFFLINE="1"),
        "gone": gone,
    }


@pytest.fixture(scope="module")
def online(visited: dict[str, Any]) -> dict[str, Any]:
    return dict(visited["online"])


def test_texts_in_json_stay_the_texts_they_are(online: dict[str, Any]) -> None:
    assert online["o/dates"]["rows"] == DATES
    assert online["o/dates"]["places"] == [f"o/dates/train.jsonl:{line}" for line in (1, 2, 3)]


def test_values_of_mixed_types_stay_what_they_are_and_no_key_is_added(online: dict[str, Any]) -> None:
    assert online["o/mixed"]["rows"] == MIXED
    assert online["o/mixed"]["places"] == ["o/mixed/data/train.json:2", "o/mixed/data/train.json:12"]


def test_values_in_csv_stay_text(online: dict[str, Any]) -> None:
    assert online["o/configs/one"]["rows"] == [{"prompt": "1", "chosen": "2.50", "rejected": "NA"}]
    assert online["o/configs/one:test"]["rows"] == [{"prompt": "x", "chosen": "true", "rejected": ""}]
    assert online["o/configs/one:test"]["places"] == ["o/configs/one/test.csv:2"]


def test_csv_in_a_form_of_its_own_is_read_by_datasets(online: dict[str, Any]) -> None:
    assert online["o/configs/two"]["rows"] == [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    assert online["o/configs/two"]["places"] == ["o/configs/two:train row 1"]


def test_a_part_of_a_split_is_those_rows(online: dict[str, Any]) -> None:
    assert online["o/dates:train[1:2]"]["places"] == ["o/dates/train.jsonl:2"]
    assert online["o/dates:train[2:]"]["places"] == ["o/dates/train.jsonl:3"]
    # Shares are the library's to work out.
    (row,) = online["o/pairs:train_prefs[40%:60%]"]["rows"]
    assert row == online["o/pairs:train_prefs"]["rows"][2]


def test_parquet_is_read_with_its_split_and_rows_are_counted_through(online: dict[str, Any]) -> None:
    rows = online["o/pairs:test_prefs"]["rows"]
    assert online["o/pairs:test_prefs"]["places"] == [f"o/pairs:test_prefs row {n}" for n in (1, 2, 3)]
    assert all(row["chosen"][0] == {"content": row["prompt"], "role": "user"} for row in rows)
    assert [row["prompt"] for row in online["o/parts"]["rows"]] == ["0-0", "0-1", "1-0", "1-1"]
    assert online["o/parts"]["places"] == [f"o/parts:train row {n}" for n in (1, 2, 3, 4)]


def test_a_revision_is_a_branch_with_rows_of_its_own(online: dict[str, Any]) -> None:
    assert online["o/dates@old"]["rows"] == DATES[:1]
    assert online["o/dates@old"]["fingerprint"] != online["o/dates"]["fingerprint"]


def test_a_broken_line_is_one_row_and_names_the_file_it_stands_in(online: dict[str, Any]) -> None:
    first, broken, last = online["o/broken"]["rows"]
    assert (first, last) == ({"a": 1}, {"a": 3})
    assert broken == "o/broken/train.jsonl:2: is not JSON: Expecting value, character 6 (cut off?)"


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("o/configs", DataError, "o/configs: it has several configs; its configs are one, two: "
            "write o/configs/one:train, for example"),
        ("o/configs/three", DataError, "o/configs: there is no config 'three'; its configs are one, two: "),
        ("o/configs/one:valid", DataError, "o/configs: there is no split 'valid'; its splits are "),
        ("o/pairs", DataError, "o/pairs: there is no split 'train'; its splits are train_prefs, test_prefs: "
            "write o/pairs:train_prefs, for example"),
        ("o/dates@new", DataError, "o/dates: there is no revision 'new' of it on the hub"),
        ("o/nothing", DataError, "o/nothing: there is no such file or folder here, and no such data set on "
            "the hub (a private one needs `hf auth login`)"),
        ("data/trian", DataError, "data/trian: there is no such file or folder here (did you mean "
            "data/train?), and no such data set on the hub"),
        ("o/script", DataError, "o/script: would run code of its own, which is refused; "
            "try @refs/convert/parquet behind it"),
        ("o/empty", DataError, "o/empty: cannot be loaded: "),
        ("o/gated", SurroundingsError, "o/gated: access must be granted first: "),
        ("o/closed", SurroundingsError, "o/closed: access must be granted first: "),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(
    source: str, kind: type[Exception], said: str, online: dict[str, Any]
) -> None:
    name, message = online[source]["error"]
    assert name == kind.__name__
    assert message.startswith(said)
    assert "\n" not in message


def test_without_a_network_the_same_rows_are_found_again(visited: dict[str, Any]) -> None:
    offline, online = visited["offline"], visited["online"]
    for source in offline.keys() - {"o/nothing"}:
        assert offline[source] == online[source], source
    name, message = offline["o/nothing"]["error"]
    assert name == "SurroundingsError"
    assert "the hub cannot be reached" in message


def test_with_the_hub_gone_what_is_at_hand_is_read_unless_it_may_be_another_revision(
    visited: dict[str, Any],
) -> None:
    gone = visited["gone"]
    assert gone["o/dates"] == visited["online"]["o/dates"]
    for source in ("o/pairs:test_prefs@other", "o/nothing"):
        name, message = gone[source]["error"]
        assert name == "SurroundingsError"
        assert "the hub cannot be reached" in message


def test_the_fingerprint_is_that_of_the_content_wherever_it_was_downloaded_to(
    visited: dict[str, Any],
) -> None:
    for source, found in visited["again"].items():
        assert found["fingerprint"] == visited["online"][source]["fingerprint"]


def test_only_the_files_of_the_split_are_downloaded(visited: dict[str, Any]) -> None:
    fetched = [line for line in visited["requests"] if line.startswith("GET") and "/o/mixed/resolve/" in line]
    assert [line.rpartition("/")[2] for line in fetched] == ["train.json"]


def test_an_error_that_is_no_matter_of_the_hub_is_not_explained_as_one() -> None:
    import errno

    full = OSError(errno.ENOSPC, "No space left on device")
    assert explain(full, "o/n", None, "") is None
    assert explain(KeyError("x"), "o/n", None, "") is None
    assert not is_unreachable(full)
    assert is_unreachable(ConnectionError("no route"))
