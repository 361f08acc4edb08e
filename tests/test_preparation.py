"""Several sources, weights, cleaning and policy, through the data module and real files."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from test_datamodule import attach, batch_numbers, numbers, ready, rows, write

from orpo_lightning.data.datamodule import PreferenceDataModule
from orpo_lightning.errors import CheckpointError, DataError, UsageError


@pytest.fixture
def make(tmp_path: Path, tokenizer: str) -> Any:
    def build(train: Any = None, **arguments: Any) -> PreferenceDataModule:
        default = {"tokenizer": tokenizer, "cache_dir": str(tmp_path / "cache")}
        return PreferenceDataModule(train=train, **(default | arguments))

    return build


def lines(path: Path, content: Iterable[Mapping[str, Any] | str]) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in content))
    return str(path)


def texts(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Q{i} ", "chosen": f"A{i}", "rejected": f"B{i}"} for i in range(first, first + count)]


# Several sources


def test_several_sources_are_used_once_each_where_no_weight_is_set(make: Any, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(4)), lines(tmp_path / "two.jsonl", texts(3, first=4))
    data = ready(make([one, two], batch_size=1))
    assert numbers(data, data.train_dataset) == list(range(7))
    assert sorted(list(chain.from_iterable(batch_numbers(data, data.train_dataloader())))) == list(range(7))
    assert str(data.report()["train"]).startswith(
        f"7 pairs of {one} (explicit messages) + {two} (explicit text); tokens: "
    )


@pytest.mark.parametrize(
    ("train", "settings", "share"),
    [
        (lambda one, two: [one, two], {"mix": "equal"}, 0.5),
        (lambda one, two: [{"path": one, "weight": 1}, {"path": two, "weight": 3}], {}, 0.75),
    ],
)
def test_weighted_sources_have_their_share_of_every_epoch(
    train: Any, settings: dict[str, Any], share: float, make: Any, tmp_path: Path
) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(30)), lines(tmp_path / "two.jsonl", texts(10, first=30))
    data = ready(make(train(one, two), batch_size=1, **settings))
    drawn = list(chain.from_iterable(batch_numbers(data, data.train_dataloader())))
    assert len(drawn) == 40
    assert sum(number >= 30 for number in drawn) == 40 * share
    assert ", weight " in str(data.report()["train"])


def test_a_mixed_epoch_resumes_in_its_middle_and_refuses_other_weights(make: Any, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(9)), lines(tmp_path / "two.jsonl", texts(3, first=9))

    def mixed(weight: float) -> PreferenceDataModule:
        return ready(make([one, {"path": two, "weight": weight}], batch_size=1))

    data = mixed(2)
    loader = data.train_dataloader()
    whole = batch_numbers(data, loader)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    resumed = mixed(2)
    resumed.load_state_dict(data.state_dict())
    assert batch_numbers(resumed, resumed.train_dataloader()) == whole[5:]
    with pytest.raises(CheckpointError, match=r"mixture .* within an epoch"):
        mixed(3).load_state_dict(data.state_dict())


def test_held_out_prompts_are_held_out_of_all_sources(make: Any, tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", texts(10))
    two = lines(tmp_path / "two.jsonl", [row | {"rejected": "another"} for row in texts(10)])
    data = ready(make([{"path": one, "weight": 1}, {"path": two, "weight": 3}], validation=0.3))
    held = numbers(data, data.validation_dataset)
    assert Counter(Counter(held).values()) == {2: 3}
    assert not set(held) & set(numbers(data, data.train_dataset))
    assert len(list(chain.from_iterable(batch_numbers(data, data.train_dataloader())))) == 14


def test_each_source_may_have_a_shape_and_columns_of_its_own(make: Any, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", rows(2))
    renamed = [{"q": f"Q{i} ", "win": f"A{i}", "lose": f"B{i}"} for i in (2, 3)]
    two = lines(tmp_path / "two.jsonl", renamed)
    columns = {"prompt": "q", "chosen": "win", "rejected": "lose"}
    data = ready(make([one, {"path": two, "columns": columns, "shape": "explicit"}]))
    assert numbers(data, data.train_dataset) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": []}, "data.train: expected at least one source, found an empty list"),
        (
            {"train": "t.jsonl", "validation": {"path": "t.jsonl", "weight": 2}},
            "data.validation: only training sources are mixed by weight",
        ),
    ],
)
def test_sources_that_make_no_sense_are_refused(
    arguments: dict[str, Any], message: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.jsonl", rows(3))
    with pytest.raises(UsageError, match=message):
        ready(make(**arguments))


# Broken rows


def test_the_first_five_of_all_broken_rows_are_named_and_nothing_is_stored(make: Any, tmp_path: Path) -> None:
    content = [*texts(700), *["{"] * 7, *texts(2, first=700)]
    with pytest.raises(DataError) as caught:
        ready(make(lines(tmp_path / "x.jsonl", content)))
    assert str(caught.value).startswith(
        "7 rows are broken, --data.on_error skip leaves them out; the first: "
    )
    assert [f"x.jsonl:{701 + i}: is not JSON" in str(caught.value) for i in range(6)] == [True] * 5 + [False]
    assert not any((tmp_path / "cache").iterdir())


def test_one_broken_row_is_named_with_the_way_to_go_on(make: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.jsonl:3: .*\(--data\.on_error skip leaves such rows out\)$"):
        ready(make(lines(tmp_path / "x.jsonl", [*texts(2), "[1]"])))


def test_skipping_leaves_broken_rows_out_and_a_later_strict_run_still_stops(
    make: Any, tmp_path: Path
) -> None:
    train = lines(tmp_path / "x.jsonl", [*texts(50), "[1]", {"prompt": "a", "chosen": "b"}])
    data = ready(make(train, on_error="skip"))
    assert len(data.train_dataset) == 50
    assert f"left out: 2 broken row (first {train}:51)" in str(data.report()["train"])
    with pytest.raises(DataError, match=r"2 rows of 52 are broken"):
        ready(make(train))


# Rows of no use


def test_too_many_useless_rows_stop_the_run_with_the_table_of_reasons(make: Any, tmp_path: Path) -> None:
    bad = [texts(1)[0] | {"chosen": "B0"}] * 4 + [texts(1)[0] | {"chosen": " "}] * 2
    train = lines(tmp_path / "x.jsonl", [*texts(94), *bad])
    with pytest.raises(DataError) as caught:
        ready(make(train))
    message = str(caught.value)
    assert "6 of 100 rows (6.0%) cannot be used, more than data.max_dropped 0.05 allows" in message
    assert f"4 identical answers (first {train}:95), 2 empty answer (first {train}:99)" in message
    listed = Path(message.partition("all are listed in ")[2])
    assert [json.loads(line)["where"] for line in listed.open()] == [f"{train}:{i}" for i in range(95, 101)]
    assert len(ready(make(train, max_dropped=0.06)).train_dataset) == 94


def test_pairs_beyond_a_limit_or_below_a_margin_are_no_fault_of_the_data(make: Any, tmp_path: Path) -> None:
    scored = [row | {"score_chosen": i, "score_rejected": 0} for i, row in enumerate(texts(10))]
    long = [
        texts(1, first=10 + i)[0] | {"chosen": "A" * 200, "score_chosen": 9, "score_rejected": 0}
        for i in range(5)
    ]
    data = ready(make(lines(tmp_path / "x.jsonl", [*scored, *long]), max_length=100, min_margin=4.0))
    assert numbers(data, data.train_dataset) == [4, 5, 6, 7, 8, 9]
    dropped = data.report()["train"].dropped
    assert {reason: d.rows for reason, d in dropped.items()} == {
        "score margin below data.min_margin": 4,
        "pair too long": 5,
    }


def test_rows_read_are_rows_kept_and_rows_left_out(make: Any, tmp_path: Path) -> None:
    content = [*texts(20), "no json", texts(1)[0], texts(1)[0] | {"chosen": "B0"}]
    data = ready(make(lines(tmp_path / "x.jsonl", content), on_error="skip", max_dropped=1.0))
    report = data.report()["train"]
    assert report.sources[0].rows == 23
    assert report.pairs + sum(dropped.rows for dropped in report.dropped.values()) == 23
    listed = list(data.preparation.left_out())
    assert Counter(item["reason"] for item in listed) == {
        "broken row": 1,
        "identical answers": 1,
        "exact duplicate": 1,
    }


def test_what_was_left_out_is_never_in_memory_as_a_whole(make: Any, tmp_path: Path) -> None:
    useless = [{"prompt": f"Q{i} ", "chosen": "A" * 9_000, "rejected": "A" * 9_000} for i in range(400)]
    content = [*texts(5), *useless, *texts(5), *texts(5)]
    train = lines(tmp_path / "x.jsonl", content)
    ready(make(train, max_dropped=1.0))  # 7 MB of rows are left out, and stored
    tracemalloc.start()
    data = ready(make(train, max_dropped=1.0))
    listed = [item["where"] for item in data.preparation.left_out()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert listed == [f"{train}:{line}" for line in range(6, 416)]
    assert peak < 2_000_000


def test_a_repeated_prompt_in_most_rows_is_an_error_that_names_the_option(make: Any, tmp_path: Path) -> None:
    repeated = [
        {"prompt": f"What is Q{i}?", "chosen": f"What is Q{i}? A{i}", "rejected": f"What is Q{i}? B"}
        for i in range(4)
    ]
    train = lines(tmp_path / "x.jsonl", repeated)
    with pytest.raises(DataError, match=r"repeat the prompt in 4 of 4 pairs.* data\.repeated_prompt strip"):
        ready(make(train))
    data = ready(make(train, repeated_prompt="strip"))
    assert data.processor.decode(data.train_dataset[1].chosen) == " A1<|im_end|>"


# Pairs and other pairs


def test_exact_duplicates_are_kept_once_unless_asked_for(make: Any, tmp_path: Path) -> None:
    train = lines(tmp_path / "x.jsonl", [*texts(3), *texts(2), texts(1)[0] | {"rejected": "C"}])
    data = ready(make(train))
    assert numbers(data, data.train_dataset) == [0, 1, 2, 0]
    assert data.report()["train"].dropped["exact duplicate"] == (2, [f"{train}:4", f"{train}:5"])
    assert len(ready(make(train, duplicates="keep")).train_dataset) == 6


def test_contradictions_are_kept_and_reported_or_left_out_on_both_sides(make: Any, tmp_path: Path) -> None:
    reversed_pair = {"prompt": "Q1 ", "chosen": "B1", "rejected": "A1"}
    train = lines(tmp_path / "x.jsonl", [*texts(3), reversed_pair])
    assert len(ready(make(train)).train_dataset) == 4
    data = ready(make(train, contradictions="drop"))
    assert numbers(data, data.train_dataset) == [0, 2]


def test_pairs_that_are_trained_on_are_taken_out_of_validation(make: Any, tmp_path: Path) -> None:
    train, validation = lines(tmp_path / "t.jsonl", texts(5)), lines(tmp_path / "v.jsonl", texts(4, first=3))
    data = ready(make(train, validation=validation))
    assert numbers(data, data.validation_dataset) == [5, 6]
    assert data.report()["validation"].dropped["also in train"] == (2, [f"{validation}:1", f"{validation}:2"])
    with pytest.raises(DataError, match="every validation pair is also trained on"):
        ready(make(train, validation=train))


def test_validating_alone_leaves_out_the_same_pairs_and_draws_the_same_sample_as_training(
    make: Any, tmp_path: Path
) -> None:
    train = lines(tmp_path / "t.jsonl", texts(20))
    validation = lines(tmp_path / "v.jsonl", texts(30, first=10))
    fitted, alone = (
        ready(make(train, validation=validation, validation_size=8), stage) for stage in ("fit", "validate")
    )
    assert numbers(alone, alone.validation_pairs.whole) == list(range(20, 40))
    assert numbers(alone, alone.validation_dataset) == numbers(fitted, fitted.validation_dataset)
    assert alone.report()["validation"] == fitted.report()["validation"]


@pytest.mark.parametrize("stage", ["test", None])
def test_pairs_that_are_trained_on_are_taken_out_of_test(
    stage: str | None, make: Any, tmp_path: Path
) -> None:
    train, test = lines(tmp_path / "t.jsonl", texts(5)), lines(tmp_path / "e.jsonl", texts(4, first=3))
    data = ready(make(train, test=test), stage)
    assert numbers(data, data.test_dataset) == [5, 6]
    assert f"left out: 2 also in train (first {test}:1)" in str(data.report()["test"])
    with pytest.raises(DataError, match=r"every test pair is also trained on; name other pairs$"):
        ready(make(train, test=train), stage)


def test_pairs_that_are_held_out_of_train_may_be_tested_on(make: Any, tmp_path: Path) -> None:
    train = lines(tmp_path / "t.jsonl", texts(10))
    data = ready(make(train, validation=0.3, test=train))
    assert numbers(data, data.test_dataset) == numbers(data, data.validation_dataset)


# Rows from code


def test_rows_from_code_are_read_one_by_one_and_must_be_the_same_twice(
    tokenizer: str, tmp_path: Path
) -> None:
    class Streamed(PreferenceDataModule):
        calls = 0

        def load_rows(self, split: str) -> Any:
            if split == "train":
                self.calls += 1
                yield from texts(5, first=self.calls if self.unsteady else 0)

        unsteady = False

    data = ready(Streamed(tokenizer=tokenizer, cache_dir=str(tmp_path)))
    assert (data.calls, len(data.train_dataset)) == (2, 5)
    again = ready(Streamed(tokenizer=tokenizer, cache_dir=str(tmp_path)))
    assert again.calls == 1
    changing = Streamed(tokenizer=tokenizer, cache_dir=str(tmp_path))
    changing.unsteady = True
    with pytest.raises(DataError, match="it gave other rows the second time"):
        ready(changing)


def test_a_datasets_object_may_bring_the_rows(tokenizer: str, tmp_path: Path) -> None:
    import datasets

    class FromDatasets(PreferenceDataModule):
        def load_rows(self, split: str) -> Any:
            return datasets.Dataset.from_list(texts(3)) if split == "train" else ()

    data = ready(FromDatasets(tokenizer=tokenizer, cache_dir=str(tmp_path)))
    assert numbers(data, data.train_dataset) == [0, 1, 2]


# Other data on resume


def test_changed_data_may_be_accepted_when_a_run_goes_on(make: Any, tmp_path: Path) -> None:
    train = lines(tmp_path / "t.jsonl", texts(9))
    data = attach(ready(make(train)))
    iterator = iter(data.train_dataloader())
    next(iterator)
    next(iterator)
    state = data.state_dict()
    lines(tmp_path / "t.jsonl", texts(10))
    with pytest.raises(CheckpointError, match=r"--data\.changed_data accept goes on"):
        attach(ready(make(train))).load_state_dict(state)
    other = attach(ready(make(train, changed_data="accept")))
    other.load_state_dict(state)
    assert len(list(other.train_dataloader())) == 5 - 2
