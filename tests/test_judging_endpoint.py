"""A judge behind an OpenAI-compatible endpoint: a real server, each way it can fail, and a kill."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from orpo_lightning.errors import SurroundingsError
from orpo_lightning.judging.endpoint import Endpoint, verdict_of
from orpo_lightning.judging.exchange import Exchange
from orpo_lightning.judging.kept import Kept
from orpo_lightning.judging.verdicts import Comparison, Reply, judged
from tests.judge_server import JudgeServer, judge_server

KEY = "sk-test-0123456789abcdef"


def endpoint(server: JudgeServer, key: str | None = None, parallel: int = 2, **settings: Any) -> Endpoint:
    exchange = Exchange(server.url, key, **{"timeout": 5.0, "waits": (0.05, 0.05), **settings})
    return Endpoint(exchange, "judge-1", parallel=parallel)


def compare(judge: Endpoint, count: int = 1) -> list[Reply]:
    asked = [Comparison(f"question {i}", "a" * (i + 1), "b" * 5) for i in range(count)]
    found: dict[int, Reply] = {}
    judge.compare(asked, found.__setitem__)
    return [found[place] for place in range(count)]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_each_comparison_is_asked_once_and_some_at_a_time(tmp_path: Path) -> None:
    with judge_server(tmp_path, seconds=0.1) as server:
        found = compare(endpoint(server, KEY, parallel=3), 9)
        asked = server.requests()
    assert [reply.verdict for reply in found] == ["second"] * 5 + ["first"] * 4
    assert len(asked) == 9
    assert max(one["at a time"] for one in asked) == 3
    assert {one["path"] for one in asked} == {"/v1/chat/completions"}
    assert {one["key"] for one in asked} == {f"Bearer {KEY}"}
    body = asked[0]["body"]
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "after": 0},
        {"status": 500},
        {"status": 503},
        {"cut": True},
        {"text": "<html>a proxy's page</html>"},
        {"text": '{"choices": ['},
        {"seconds": 3},
    ],
    ids=["429", "500", "503", "cut", "not JSON", "half JSON", "slow"],
)
def test_what_passes_is_asked_again(fault: dict[str, Any], tmp_path: Path) -> None:
    with judge_server(tmp_path, faults=[fault]) as server:
        found = compare(endpoint(server, timeout=0.5))
        assert len(server.requests()) == 2
    assert found[0].verdict == "second"


def test_a_server_that_says_how_long_to_wait_is_given_that_long(tmp_path: Path) -> None:
    with judge_server(tmp_path, faults=[{"status": 429, "after": 1}]) as server:
        start = time.monotonic()
        compare(endpoint(server))
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ([{"status": 500}] * 3, "answered 500 Internal Server Error: a fault of the test (tried 3 times)"),
        ([{"status": 404}], "answered 404 Not Found: a fault of the test"),
        ([{"status": 302}], "answered 302 Found: a fault of the test"),
        ([{"seconds": 3}] * 3, "timed out (tried 3 times)"),
    ],
)
def test_what_does_not_pass_ends_in_one_line(
    faults: list[dict[str, Any]], words: str, tmp_path: Path
) -> None:
    with judge_server(tmp_path, faults=faults) as server, pytest.raises(SurroundingsError) as caught:
        compare(endpoint(server, timeout=0.5))
    assert str(caught.value).startswith(f"--judge: {server.url}: {words}; what was answered is kept")


def test_a_key_that_is_refused_stands_in_no_message_though_the_server_repeats_it(tmp_path: Path) -> None:
    with judge_server(tmp_path, key="another") as server, pytest.raises(SurroundingsError) as caught:
        compare(endpoint(server, KEY))
    assert "answered 401" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_nobody_there_is_told_before_anything_else_is_done() -> None:
    with pytest.raises(SurroundingsError, match=r"--judge: http://127.0.0.1:9/v1: .*refused"):
        Exchange("http://127.0.0.1:9/v1", None, waits=()).probe()


def test_a_reply_without_a_verdict_is_malformed_and_not_guessed(tmp_path: Path) -> None:
    with judge_server(tmp_path, "silent") as server:
        found = compare(endpoint(server))
        assert len(server.requests()) == 1
    assert found == [Reply("malformed", "Both are nice.")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"text": f'{{"error": "no GPU, {KEY}"}}'}, 'no chat completion: {"error": "no GPU, ***"}'),
        ({"text": '{"choices": []}'}, 'no chat completion: {"choices": []}'),
        ({"text": "[]"}, "no chat completion: []"),
        ({"text": f"<html>\n{KEY}</html>"}, "no JSON: <html> ***</html>"),
    ],
    ids=["error", "no choice", "list", "page"],
)
def test_what_is_no_completion_is_asked_again_told_and_not_kept(
    fault: dict[str, Any], words: str, tmp_path: Path
) -> None:
    kept, (turns, answers) = Kept(tmp_path / "verdicts.jsonl"), two_models(2)
    with judge_server(tmp_path, faults=[fault] * 3) as server:
        with pytest.raises(SurroundingsError) as caught:
            judged(endpoint(server, KEY, parallel=1), turns, answers, ("base", "adapter"), kept)
        assert len(server.requests()) == 3
    assert str(caught.value).startswith(f"--judge: {server.url}: answered what is {words} (tried 3 times); ")
    assert not kept.file.exists()


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("first", [0, 1], ids=["asked first", "asked second"])
def test_one_comparison_that_is_refused_ends_no_evaluation_and_is_asked_again_by_the_next(
    status: int, first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (turns, answers), kept = two_models(2), Kept(tmp_path / "verdicts.jsonl")
    with judge_server(tmp_path, faults=[{}] * first + [{"status": status}]) as server:
        judge = endpoint(server, parallel=1)
        found = judged(judge, turns, answers, ("base", "adapter"), kept)
        assert (found["malformed"], found["judged"]) == (1, 1)
        assert len(kept.file.read_text().splitlines()) == 3
        assert [line for line in caplog.messages if f"answered {status}" in line] == [
            f"judge-1 at {server.url}: answered {status} {HTTPStatus(status).phrase}: a fault of the test; "
            "comparisons that it refuses count as malformed"
        ]
        asked = len(server.requests())
        found = judged(judge, turns, answers, ("base", "adapter"), Kept(kept.file))
        assert (found["malformed"], found["judged"]) == (0, 2)
        assert len(server.requests()) == asked + 1


def test_an_endpoint_that_refuses_whatever_is_asked_ends_in_one_line(tmp_path: Path) -> None:
    with judge_server(tmp_path, faults=[{"status": 400}] * 2) as server:
        with pytest.raises(SurroundingsError, match="answered 400 Bad Request: a fault of the test; "):
            compare(endpoint(server, parallel=1), 3)
        assert len(server.requests()) == 2


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("VERDICT: 1", "first"),
        ("They differ.\n\n**Verdict: 2**\n", "second"),
        ("<think>1?</think>\nVERDICT: tie.", "tie"),
        ("VERDICT: 1\nBut 2 is good too.", "malformed"),
        ("VERDICT: 1 or 2", "malformed"),
        ("2", "malformed"),
        ("", "malformed"),
        (None, "malformed"),
    ],
)
def test_the_verdict_is_the_last_line(text: str | None, verdict: str) -> None:
    assert verdict_of(text) == verdict


def two_models(count: int) -> tuple[list[str], dict[str, list[str]]]:
    """Return prompts, and answers of which the second model's are the longer ones but for the last."""
    base = ["short"] * count
    return [f"prompt {i}" for i in range(count)], {
        "base": base,
        "adapter": ["longer text"] * (count - 1) + ["x"],
    }


def test_a_judge_who_prefers_whatever_is_shown_first_finds_ties_only(tmp_path: Path) -> None:
    turns, answers = two_models(4)
    with judge_server(tmp_path, "first") as server:
        kept = Kept(tmp_path / "verdicts.jsonl")
        found = judged(endpoint(server), turns, answers, ("base", "adapter"), kept)
    assert (found["ties"], found["disagreements"], found["first_preferred"]) == (4, 4, 1.0)
    assert found["win_rate"] == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_what_was_judged_before_a_failure_is_not_asked_again(tmp_path: Path) -> None:
    turns, answers = two_models(6)
    file = tmp_path / "verdicts.jsonl"
    faults = [{}] * 5 + [{"status": 404}]
    with judge_server(tmp_path / "first", faults=faults) as server:
        with pytest.raises(SurroundingsError):
            judged(endpoint(server, parallel=1), turns, answers, ("base", "adapter"), Kept(file))
        assert len(server.requests()) == 6
    # A kill in the middle of a line.
    file.write_bytes(file.read_bytes()[:-9])
    with judge_server(tmp_path / "first") as again:
        # Another port is another judge: what is asked here is the same server, come back.
        judge = endpoint(again)
        judge.key = json.loads(json.dumps(endpoint(server).key))
        found = judged(judge, turns, answers, ("base", "adapter"), Kept(file))
        assert len(again.requests()) == 6 + 12 - 4
    assert (found["wins"], found["losses"], found["judged"]) == (5, 1, 6)
    rate = found["win_rate"]
    assert rate["mean"] == pytest.approx(5 / 6)
    assert rate["low"] < 5 / 6 < rate["high"]
    lines = file.read_text().splitlines()
    whole = [line for line in lines if line.endswith("}")]
    assert len(whole) == len({json.loads(line)["key"] for line in whole}) == 12
