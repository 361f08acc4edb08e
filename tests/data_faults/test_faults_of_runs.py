"""Too few pairs, and other pairs than before: rows D40 and D42 of the fault table; D44's reverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import Prepare, chats, examined, refusal, said, spoken, texts, write
from test_datamodule import attach

from orpo_lightning.batching.sampler import FILLER
from orpo_lightning.errors import CheckpointError


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_d40_fewer_pairs_than_a_step_takes_are_shared_out_among_all_ranks(
    count: int, ranks: int, prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", texts(count))
    batches, seen = set(), []
    for rank in range(ranks):
        data = prepare(path, batch_size=4)
        attach(data, world_size=ranks, global_rank=rank, accumulate_grad_batches=3)
        loader = data.train_dataloader()
        seen += [pair for batch in loader.plan for pair in batch.indices if pair != FILLER]
        mine = list(data.train_dataloader())
        batches.add(len(mine))
        assert {int(batch.normalisers.pairs) for batch in mine} == {count}
    # All ranks take part in every step: one that had no batch would leave the others waiting.
    assert batches == {-(-count // (4 * ranks))}
    assert sorted(seen) == list(range(count))


def test_d40_a_validation_set_of_one_pair_is_used(prepare: Prepare, tmp_path: Path) -> None:
    validation = write(tmp_path / "v.jsonl", texts(1, first=900))
    data = prepare(write(tmp_path / "x.jsonl", texts()), validation=validation)
    assert spoken(data, "validation") == said(texts(1, first=900))
    assert len(list(data.val_dataloader())) == 1


def test_d40_a_validation_set_of_which_nothing_is_left_is_an_error_with_the_reasons(
    prepare: Prepare, tmp_path: Path
) -> None:
    validation = write(tmp_path / "v.jsonl", [texts(1)[0] | {"chosen": ""}] * 3)
    message = refusal(prepare, write(tmp_path / "x.jsonl", texts()), validation=validation)
    assert message.startswith(
        f"{validation}: no usable pair is left; left out: 3 empty answer (first {validation}:1)"
    )


def test_d40_of_a_single_prompt_none_can_be_held_out(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row | {"prompt": "One?"} for row in texts(5)])
    assert "all pairs have the same prompt, so none can be held out" in refusal(prepare, path, validation=0.2)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(texts(39), id="a row less"),
        pytest.param(texts(41), id="a row more"),
        pytest.param(texts()[::-1], id="another order"),
        pytest.param([*texts(39), texts(1, first=39)[0] | {"rejected": "Wrong 39?"}], id="a letter"),
        pytest.param(
            [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in texts()],
            id="sides exchanged",
        ),
    ],
)
def test_d42_a_file_that_changed_is_refused_where_a_run_goes_on_unless_it_is_accepted(
    changed: list[dict[str, Any]], prepare: Prepare, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", texts())
    data = attach(prepare(path))
    loader = iter(data.train_dataloader())
    next(loader)
    saved = data.state_dict()
    write(tmp_path / "x.jsonl", changed)
    with pytest.raises(CheckpointError) as caught:
        attach(prepare(path)).load_state_dict(saved)
    assert f"{path}: the training data differs from the checkpoint's" in str(caught.value)
    assert "--data.changed_data accept" in str(caught.value)
    assert type(caught.value).exit_code == 4
    accepted = attach(prepare(path, changed_data="accept"))
    accepted.load_state_dict(saved)
    assert len(list(accepted.train_dataloader())) == -(-len(changed) // 2) - 1


def test_d42_the_same_rows_written_differently_go_on(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", texts())
    data = attach(prepare(path))
    next(iter(data.train_dataloader()))
    saved = data.state_dict()
    write(tmp_path / "x.jsonl", [dict(reversed((row | {"id": i}).items())) for i, row in enumerate(texts())])
    attach(prepare(path)).load_state_dict(saved)


def test_d44_a_set_in_which_length_says_nothing_has_no_such_hint(prepare: Prepare, tmp_path: Path) -> None:
    rows = chats()
    for row in rows[::2]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    part = examined(prepare(write(tmp_path / "x.jsonl", rows)))["splits"]["train"]
    assert part["longer"]["longer_wins_accuracy"] == 0.5
    assert part["hints"] == []
