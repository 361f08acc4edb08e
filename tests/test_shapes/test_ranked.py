"""Ranked lists: the best answer against the worst."""

from __future__ import annotations

import random
from typing import Any

import pytest

from orpo_lightning.data.left_out import LeftOut
from orpo_lightning.data.records import PreferenceRecord, Records, to_record
from orpo_lightning.data.shapes import NO_PREFERENCE
from tests.shape_samples import Rows, assistant, system, user
from tests.test_shapes.checks import fails, last, left_out, record


def scored(*scores: Any, key: str = "score") -> Rows:
    return [{"text": f"a{i}", key: score} for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("completions", "chosen", "rejected", "margin"),
    [
        (scored(1, 3, 2), "a1", "a0", 2.0),
        (scored(3, 1), "a0", "a1", 2.0),
        (scored(2, 3, 3, 1, 1), "a1", "a3", 2.0),
        (scored("2.5", "3", key="rating"), "a1", "a0", 0.5),
        (scored(-1.5, 0.0, key="overall_score"), "a1", "a0", 1.5),
        (scored(2, 1, 4, 1, key="rank"), "a1", "a2", 3.0),
        (scored(None, 3, 1), "a1", "a2", 2.0),
    ],
)
def test_the_best_answer_is_chosen_against_the_worst_and_of_equals_the_first(
    completions: Rows, chosen: str, rejected: str, margin: float
) -> None:
    expected = record([user("p")], [assistant(chosen)], [assistant(rejected)], margin=margin)
    assert to_record({"prompt": "p", "completions": completions}, "x:3") == expected


def test_ranked_answers_are_read_under_every_name() -> None:
    for text in ("response", "text", "content", "completion", "answer"):
        answers = [{text: "no", "score": 1}, {text: "yes", "score": 2}]
        for column in ("completions", "responses", "answers", "generations"):
            for prompt in ("prompt", "instruction", "question"):
                row = {prompt: "p", column: answers}
                assert to_record(row, "x:3") == record([user("p")], margin=1.0)


@pytest.mark.parametrize("name", ["scores", "ratings", "ranks"])
def test_scores_may_stand_beside_the_answers(name: str) -> None:
    row = {
        "prompt": [system("s"), user("p")],
        "responses": ["no", "yes"],
        name: [2, 1] if name == "ranks" else [1, 2],
    }
    assert to_record(row, "x:3") == record([system("s"), user("p")], margin=1.0)


def test_a_ranked_prompt_may_be_a_transcript_and_have_a_system_turn() -> None:
    row = {
        "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ",
        "answers": scored(1, 2),
        "system": "s",
    }
    found = to_record(row, "x:3")
    assert found.prompt == [system("s"), user("a"), assistant("b"), user("c")]
    # One that ends otherwise is a text like any other.
    assert to_record(row | {"prompt": "Human: a\n\nAssistant: b", "system": ""}, "x:3").prompt == [
        user("Human: a\n\nAssistant: b")
    ]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (scored(2, 2, 2), "all answers have the same score"),
        (scored(2), "fewer than two answers have a score"),
        (scored(2, None), "fewer than two answers have a score"),
        ([], "fewer than two answers have a score"),
    ],
)
def test_answers_that_are_all_equal_are_left_out(answers: Rows, why: str) -> None:
    row = {"prompt": "p", "completions": answers}
    assert left_out(row) == LeftOut("x row 1", NO_PREFERENCE, f"x row 1: no preference: {why}", row)
    fails(row, f"x:3: no preference: {why}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "responses": "a"}, "x:3: responses must be a list of answers, found text"),
        (
            {"prompt": "p"},
            "x:3: expected a key completions, responses, answers or generations; the row's keys are",
        ),
        (
            {"answers": scored(1, 2)},
            "x:3: expected a key prompt, instruction or question; the row's keys are 'answers'",
        ),
        ({"prompt": 3, "answers": scored(1, 2)}, "x:3: prompt must be text, found int 3"),
        ({"prompt": [], "answers": scored(1, 2)}, "x:3: prompt must be text, found a list"),
        (
            {"prompt": "p", "answers": [{"score": 1}]},
            "x:3: answers[0]: expected an answer with one of response, text",
        ),
        ({"prompt": "p", "answers": [3]}, "x:3: answers[0] must be text, found int 3"),
        (
            {"prompt": "p", "answers": [{"text": 3, "score": 1}]},
            "x:3: answers[0].text must be text, found int 3",
        ),
        (
            {"prompt": "p", "answers": scored(1, "good")},
            "x:3: answers[1].score must be a number, found 'good'",
        ),
        (
            {"prompt": "p", "answers": scored(1, True)},
            "answers[1].score must be a number, found true or false",
        ),
        ({"prompt": "p", "answers": scored(1, float("nan"))}, "must be a number, found float nan"),
        (
            {"prompt": "p", "answers": ["a", "b"]},
            "x:3: no answer has a score; expected overall_score, score, rating, rank in answers, or scores",
        ),
        (
            {"prompt": "p", "answers": ["a", "b"], "scores": [1]},
            "x:3: scores must be a list, one for each of 2 answers; found 1 of them",
        ),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": 1}, "one for each of 2 answers; found int 1"),
        (
            {"prompt": "p", "answers": ["a", "b"], "ranks": [1, "x"]},
            "x:3: ranks[1] must be a number, found 'x'",
        ),
    ],
)
def test_ranked_rows_that_cannot_be_used_are_named(row: dict[str, Any], message: str) -> None:
    fails(row, message, "ranked")


def test_every_ranked_row_is_a_record_or_left_out_and_its_margin_is_that_of_its_best_and_worst() -> None:
    draw = random.Random(3)
    rows = [
        {
            "prompt": f"p{i}",
            "completions": scored(*(draw.choice([None, 1, 2, 3]) for _ in range(draw.randrange(5)))),
        }
        for i in range(300)
    ]
    found = list(Records(rows, "x", shape="ranked"))
    assert [item.where for item in found] == [f"x row {i}" for i in range(1, 301)]
    for row, item in zip(rows, found, strict=True):
        scores = [answer["score"] for answer in row["completions"] if answer["score"] is not None]
        has_winner = len(set(scores)) > 1
        assert isinstance(item, PreferenceRecord) == has_winner
        if isinstance(item, PreferenceRecord):
            assert item.margin == max(scores) - min(scores)
            of_answer = {answer["text"]: answer["score"] for answer in row["completions"]}
            assert of_answer[last(item.chosen)] == max(scores)
            assert of_answer[last(item.rejected)] == min(scores)
        elif row["completions"] and not scores:
            assert item.is_broken  # answers, and no score at any of them
        else:
            assert item.reason == NO_PREFERENCE
