"""A slower step is noticed without a clock: what it costs is counted and compared with what is committed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from step_cost import FIGURES, FILE, LAYOUTS, Counter, floor_flops, has_layouts, python_calls

# Counts of arithmetic are exact. A library's next patch may dispatch or call a little more or less.
TOLERANCE = {
    "product_flops": 0.001,
    "attention_flops": 0.001,
    "bytes_written": 0.01,
    "operations": 0.02,
    "python_calls": 0.05,
}
EXPECTED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("step")
    layouts = LAYOUTS if has_layouts() else LAYOUTS[:1]
    # In a process of its own: what other tests leave behind costs calls as well.
    program = (
        "import json, pathlib, sys; from step_cost import measure\n"
        "folder, *layouts = sys.argv[1:]\n"
        "print(json.dumps({layout: measure(pathlib.Path(folder), layout) for layout in layouts}))"
    )
    here = Path(__file__).parent
    # A seed that another module's fixture left makes every batch seed dropout.
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *layouts],
        env=environment | {"PYTHONPATH": f"{here}:{here.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("figure", FIGURES)
def test_a_step_costs_what_it_did(
    found: tuple[Path, dict[str, dict[str, float]]], figure: str, layout: str
) -> None:
    if layout not in found[1]:
        pytest.skip("the data module has but one layout")
    minor = EXPECTED["versions"]["python"].rpartition(".")[0]
    if figure == "python_calls" and platform.python_version().rpartition(".")[0] != minor:
        pytest.skip(f"calls were counted under Python {minor}; others inline more or less")
    counted, committed = found[1][layout][figure], EXPECTED[layout][figure]
    share = counted / committed
    assert abs(share - 1) <= TOLERANCE[figure], (
        f"{figure}: {counted:,.0f} in a step, committed are {committed:,.0f} ({share:.3f} times). "
        "Where that is worth it, or a saving: python tests/step_cost.py, and commit what it writes"
    )


def test_a_step_has_no_matrix_product_more_than_the_floor_of_the_benchmark(
    found: tuple[Path, dict[str, dict[str, float]]],
) -> None:
    folder, costs = found
    if "shared_prefix" not in costs:
        pytest.skip("the padded layout computes every prompt twice")
    assert costs["shared_prefix"]["product_flops"] == floor_flops(folder)


def test_the_counter_counts_products_attention_writes_and_operations() -> None:
    left, right, vector = torch.ones(3, 5), torch.ones(5, 7), torch.ones(2, 1, 4, 8)
    with Counter() as counter:
        torch.mm(left, right)  # 3 x 5 x 7 products, as many sums; 3 x 7 floats
        left.view(15)  # an operation that writes nothing
        left.add_(1)  # 15 floats
        torch.nn.functional.scaled_dot_product_attention(vector, vector, vector)
    assert counter.counts["product_flops"] == 2 * 3 * 5 * 7
    assert counter.counts["attention_flops"] == 2 * 2 * (2 * 4 * 4 * 8)
    assert counter.counts["operations"] >= 4
    written = 4 * (3 * 7 + 15) + vector.nbytes
    assert written <= counter.counts["bytes_written"] <= written + vector.nbytes


def test_calls_of_python_functions_are_counted() -> None:
    def one() -> int:
        return 1

    counts: dict[str, int] = {}
    with python_calls(counts):
        for _ in range(10):
            one()
    assert 10 <= counts["python_calls"] <= 12
