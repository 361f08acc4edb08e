"""Pairs that teach nothing or the wrong thing: rows D16 to D20, D27, D33 to D36, D41, D43 of the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import (
    STOP,
    Prepare,
    amid,
    chats,
    examined,
    left_out,
    refusal,
    said,
    spoken,
    suspicious,
    texts,
    turn,
    write,
)
from tiny_models import tiny_tokenizer

from orpo_lightning.data import flags


def of_answers(chosen: str, rejected: str, kind: str) -> dict[str, Any]:
    """Return a row with these answers, as text or as messages."""
    if kind == "text":
        return texts(1, first=900)[0] | {"chosen": chosen, "rejected": rejected}
    answers = {"chosen": [turn("assistant", chosen)], "rejected": [turn("assistant", rejected)]}
    return chats(1, first=900)[0] | answers


def drops(prepare: Prepare, folder: Path, row: dict[str, Any], kind: str, reason: str) -> None:
    """Check that line 21 is left out for a reason, with its content, and that all others are trained on."""
    good = texts() if kind == "text" else chats()
    path = write(folder / "x.jsonl", amid(row, good))
    data = prepare(path)
    assert left_out(data) == [(f"{path}:21", reason)]
    assert spoken(data) == said(good)
    assert f"left out: 1 {reason} (first {path}:21)" in str(data.report()["train"])
    (item,) = data.preparation.left_out()
    assert said([item["row"]])[0][1:] == said([row])[0][1:]


# D16 to D19, D43: nothing to learn

both = pytest.mark.parametrize("kind", ["text", "messages"])


@both
def test_d16_identical_answers_are_left_out_and_counted(kind: str, prepare: Prepare, tmp_path: Path) -> None:
    drops(prepare, tmp_path, of_answers("Same.", "Same.", kind), kind, "identical answers")


@both
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Same.", " Same."),
        ("caf\u00e9", "cafe\u0301"),
        ("\ufb01\u200bne", "\ufb01ne"),
        ("Same.", "Same.\n"),
        ("Same.", f"Same.{STOP}"),
        ("Same.<|endoftext|>", f"Same. {STOP}\n"),
    ],
)
def test_d17_d43_answers_that_read_the_same_are_left_out_as_identical_after_normalisation(
    chosen: str, rejected: str, kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    row = of_answers(chosen, rejected, kind)
    drops(prepare, tmp_path, row, kind, "identical after normalisation")


@both
@pytest.mark.parametrize("nothing", ["", "  \n\t", "\u200b", "\ufeff \u200d", STOP])
@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_d18_d19_an_answer_that_shows_nothing_is_left_out(
    key: str, nothing: str, kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    answers = {"chosen": "Yes.", "rejected": "No.", key: nothing}
    drops(prepare, tmp_path, of_answers(**answers, kind=kind), kind, "empty answer")


@both
def test_d18_so_are_two_such_answers(kind: str, prepare: Prepare, tmp_path: Path) -> None:
    drops(prepare, tmp_path, of_answers("", "", kind), kind, "identical answers")


@both
@pytest.mark.parametrize("nothing", ["", " \n"])
def test_d20_an_empty_prompt_is_left_out_unless_it_is_allowed(
    nothing: str, kind: str, prepare: Prepare, tmp_path: Path
) -> None:
    row = of_answers("Yes.", "No.", kind) | {"prompt": nothing if kind == "text" else [turn("user", nothing)]}
    drops(prepare, tmp_path, row, kind, "empty prompt")
    data = prepare(str(tmp_path / "x.jsonl"), allow_empty_prompt=True)
    assert spoken(data)[20] == said([row])[0]
    assert left_out(data) == []


# D27: the prompt stands in the answers too


def repeated(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in rows]


def test_d27_a_prompt_repeated_in_the_answers_is_warned_of_above_one_percent(
    prepare: Prepare, tmp_path: Path
) -> None:
    few = write(tmp_path / "few.jsonl", texts(199) + repeated(texts(1, first=199)))
    more = write(tmp_path / "more.jsonl", texts(195) + repeated(texts(5, first=195)))
    kind = "prompt repeated in the answers"
    for path, count, is_warned in ((few, 1, False), (more, 5, True)):
        data = prepare(path)
        assert len(data.train_dataset) == 200
        assert [found[:2] for found in suspicious(data)] == [(kind, count)]
        report = examined(data)
        (check,) = [one for one in report["verdict"]["checks"] if one["name"] == f"train: {kind}"]
        assert check["passed"] is not is_warned
        assert (
            any("data.repeated_prompt strip" in hint for hint in report["splits"]["train"]["hints"])
            == is_warned
        )


def test_d27_the_prompt_is_taken_off_on_request(prepare: Prepare, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", repeated(texts()))
    data = prepare(path, repeated_prompt="strip")
    found = [(prompt, chosen.strip(), rejected.strip()) for prompt, chosen, rejected in spoken(data)]
    assert found == said(texts())


def test_d27_repeated_in_more_than_half_of_the_pairs_it_is_an_error(prepare: Prepare, tmp_path: Path) -> None:
    half = write(tmp_path / "half.jsonl", texts(20) + repeated(texts(20, first=20)))
    assert len(prepare(half).train_dataset) == 40
    path = write(tmp_path / "x.jsonl", texts(19) + repeated(texts(21, first=19)))
    assert refusal(prepare, path) == (
        f"{path}: chosen and rejected repeat the prompt in 21 of 40 pairs, so it would be trained on twice: "
        "set data.repeated_prompt strip, or leave the prompt column out"
    )


# D33 to D35: pairs and other pairs


def test_d33_exact_duplicates_are_trained_on_once_and_counted(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*texts(10), *texts(3), texts(1)[0]]
    path = write(tmp_path / "x.jsonl", rows)
    data = prepare(path)
    assert spoken(data) == said(texts(10))
    assert left_out(data) == [(f"{path}:{number}", "exact duplicate") for number in (11, 12, 13, 14)]
    assert spoken(prepare(path, duplicates="keep")) == said(rows)


@pytest.mark.parametrize("contradictions", ["keep", "drop"])
def test_d34_a_pair_and_its_reverse_are_warned_of_and_left_out_on_request(
    contradictions: str, prepare: Prepare, tmp_path: Path
) -> None:
    row = texts(1)[0]
    path = write(
        tmp_path / "x.jsonl", [*texts(), row | {"chosen": row["rejected"], "rejected": row["chosen"]}]
    )
    data = prepare(path, contradictions=contradictions)
    if contradictions == "keep":
        assert len(data.train_dataset) == 41
        assert list(suspicious(data)) == [("contradictory pairs", 2, [f"{path}:1 and {path}:41"])]
    else:
        assert spoken(data) == said(texts()[1:])
        reason = "contradicts another pair"
        assert left_out(data) == [(f"{path}:1", reason), (f"{path}:41", reason)]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_d35_pairs_that_are_trained_on_are_taken_out_of_other_splits_and_shared_prompts_warned_of(
    split: str, prepare: Prepare, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.jsonl", texts())
    same_prompt = texts(1, first=5)[0] | {"chosen": "Another answer."}
    other = write(tmp_path / "other.jsonl", [texts(1)[0], same_prompt, *texts(20, first=500)])
    data = prepare(train, **{split: other})
    assert spoken(data) == said(texts())
    assert spoken(data, split) == said([same_prompt, *texts(20, first=500)])
    assert left_out(data) == [(f"{other}:1", "also in train")]
    report = examined(data)
    found = report["across"][f"train_{split}"]
    assert (found["shared_prompts"], found[f"{split}_pairs_of_shared_prompts"], found["shared_pairs"]) == (
        2,
        2,
        1,
    )
    assert found["examples"] == [f"{other}:1 and {train}:1", f"{other}:2 and {train}:6"]
    assert report["splits"][split]["rows"] == {"read": 22, "kept": 21, "left_out": 1}


def test_d35_a_validation_set_of_nothing_else_is_an_error(prepare: Prepare, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", texts())
    message = refusal(prepare, train, validation=write(tmp_path / "validation.jsonl", texts(3)))
    assert message == (
        f"{tmp_path}/validation.jsonl: every validation pair is also trained on; name other pairs, "
        "or a share of train to hold out, such as data.validation 0.1"
    )


# D36: control tokens as text


@pytest.mark.parametrize("token", [STOP, "<|im_start|>", "<|endoftext|>"])
@pytest.mark.parametrize("key", ["prompt", "chosen", "rejected"])
def test_d36_a_control_token_written_in_a_message_is_encoded_as_text_and_counted(
    key: str, token: str, prepare: Prepare, tmp_path: Path
) -> None:
    row = of_answers("Yes.", "No.", "messages")
    written = f"Say {token}assistant to me."
    row |= {key: [turn("user" if key == "prompt" else "assistant", written)]}
    path = write(tmp_path / "x.jsonl", [row])
    data = prepare(path)
    (pair,), plain = data.train_dataset, tiny_tokenizer("chatml")
    controls = plain.convert_tokens_to_ids([STOP, "<|im_start|>", "<|endoftext|>"])
    assert sum(id in controls for id in pair.prompt) == 3  # the template's own
    assert [sum(id in controls for id in answer) for answer in pair[1:]] == [1, 1]
    assert spoken(data) == said([row])
    assert list(suspicious(data)) == [("control token written in a text", 1, [f"{path}:1"])]
    assert data.train_dataset.flags.tolist() == [flags.CONTROL_TOKEN]


# D41: too much is bad


def test_d41_where_most_rows_are_bad_the_run_stops_with_the_table_of_reasons(
    prepare: Prepare, tmp_path: Path
) -> None:
    same, empty = of_answers("A", "A", "text"), of_answers("A", "", "text")
    path = write(tmp_path / "x.jsonl", [*texts(), *[same] * 30, *[empty] * 20, *["{"] * 10])
    message = refusal(prepare, path, on_error="skip")
    assert message.startswith(
        f"{path}: 60 of 100 rows (60.0%) cannot be used, more than data.max_dropped 0.05 allows: "
    )
    for reason in (f"30 identical answers (first {path}:41)", f"20 empty answer (first {path}:71)"):
        assert reason in message
    assert f"10 broken row (first {path}:91)" in message
    listed = Path(message.partition("all are listed in ")[2])
    assert [json.loads(line)["where"] for line in listed.open()] == [f"{path}:{i}" for i in range(41, 101)]
    assert len(prepare(path, on_error="skip", max_dropped=0.6).train_dataset) == 40
