"""What a search space may say, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orpo_lightning.commands.sweep import others
from orpo_lightning.errors import UsageError
from orpo_lightning.sweeping.report import goal_of
from orpo_lightning.sweeping.space import (
    Choices,
    Range,
    corners,
    flags,
    grid,
    label,
    read_space,
    settings,
    words,
)

ROOT = Path(__file__).parent.parent


def space_of(tmp_path: Path, text: str) -> dict[str, Range | Choices]:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return read_space(file)


def test_ranges_and_lists_are_read_and_1e_5_is_a_number(tmp_path: Path) -> None:
    space = space_of(
        tmp_path, "a.lr: {low: 1e-5, high: 1e-3, log: true}\nb.r: {low: 4, high: 64}\nc: [1e-3, x, null]"
    )
    assert space == {"a.lr": Range(1e-5, 1e-3, True), "b.r": Range(4, 64), "c": Choices((1e-3, "x", None))}
    assert [space["a.lr"].whole, space["b.r"].whole] == [False, True]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "expected keys of `fit`"),
        ("a: 3", "a: expected a list of values"),
        ("a: []", "a: expected a list of values"),
        ("a: [1, 1]", "a: expected different values"),
        ("a: {low: 1}", "a: expected a list of values, or"),
        ("a: {low: 1, high: 2, step: 1}", "a: expected a list of values, or"),
        ("a: {low: 2, high: 1}", "low below high, found 2 and 1"),
        ("a: {low: 0, high: 1, log: true}", "low above 0 with log: true"),
        ("a: [", "not YAML"),
    ],
)
def test_what_cannot_be_searched_is_told_with_its_key(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--search .*space\.yaml") as raised:
        space_of(tmp_path, text)
    assert line in str(raised.value)
    with pytest.raises(UsageError, match="nowhere"):
        read_space("nowhere.yaml")


def test_a_mapping_among_the_values_sets_several_keys() -> None:
    pair = {"model.lora_r": 4, "model.lora_alpha": 8}
    space = {"rank": Choices((pair, {"model.lora_r": 16, "model.lora_alpha": 32})), "beta": Range(0.1, 1.0)}
    assert settings(space, {"rank": label(pair), "beta": 0.5}) == {**pair, "beta": 0.5}


def test_settings_become_flags_that_jsonargparse_reads() -> None:
    values = {"a.lr": 1e-05, "b": None, "c": [1, "x"], "d": "nf4", "e": True}
    words_of = dict(word.removeprefix("--").split("=", 1) for word in flags(values))
    assert {key: yaml.safe_load(text) for key, text in words_of.items() if key != "a.lr"} == {
        key: value for key, value in values.items() if key != "a.lr"
    }
    assert float(words_of["a.lr"]) == 1e-05


def test_lists_alone_are_a_grid_and_a_range_is_none() -> None:
    lists = {"a": Choices((1, 2)), "b": Choices(("x", "y", "z"))}
    combinations = grid(lists)
    assert combinations is not None
    assert len({tuple(one.items()) for one in combinations}) == 6
    assert grid({**lists, "c": Range(0, 1)}) is None


def test_every_end_and_value_is_tried_on_the_parser_before_the_first_trial() -> None:
    found = corners({"a": Range(1, 9), "b": Choices(("x", "y", "z"))})
    assert {one["a"] for one in found} == {1, 9}
    assert {one["b"] for one in found} == {"x", "y", "z"}


def test_words_name_keys_by_their_last_part_where_that_is_enough() -> None:
    assert words({"model.lr": 0.00012345, "data.seed": 1, "model.seed": 2}) == (
        "lr 0.000123, data.seed 1, model.seed 2"
    )


@pytest.mark.parametrize(
    ("metric", "goal"),
    [
        ("val/loss", "min"),
        ("val/nll/completion", "min"),
        ("val/rewards/accuracies", "max"),
        ("val_full/rewards/margins", "max"),
        ("val/length/chosen", None),
    ],
)
def test_the_name_of_a_metric_tells_what_is_good(metric: str, goal: str | None) -> None:
    assert goal_of(metric) == goal


def test_the_sweeps_own_words_are_not_given_to_its_trials() -> None:
    args = ["-c", "a.yaml", "--search", "s.yaml", "--out=x", "--json", "--trials", "3", "--data.seed", "1"]
    assert others(args) == (
        ["-c", "a.yaml", "--data.seed", "1"],
        ["--search", "s.yaml", "--out=x", "--json", "--trials", "3"],
    )


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem
)
def test_a_shipped_search_space_is_one_of_keys_that_its_configuration_has(file: Path) -> None:
    from orpo_lightning.commands.sweep import _parsed

    for values in corners(read_space(file)):
        config = ROOT / "configs" / file.name
        _parsed(
            ["--config", str(config if config.is_file() else config.with_stem("mistral")), *flags(values)]
        )
