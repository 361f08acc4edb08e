"""The quickstart's pairs are what they claim, judged by code that shares nothing with their generator."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "quickstart"
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
KINDS = {
    "animal": {"camel", "donkey", "goat", "horse", "monkey", "otter", "rabbit", "tiger", "wolf", "zebra"},
    "colour": {"black", "brown", "green", "indigo", "pink", "purple", "red", "violet", "white", "yellow"},
    "fruit": {"apple", "banana", "coconut", "fig", "grape", "mango", "melon", "pear", "quince", "strawberry"},
    "garment": {"coat", "dress", "glove", "hat", "jacket", "scarf", "shirt", "sock", "uniform", "vest"},
    "instrument": {
        "banjo",
        "cello",
        "drum",
        "flute",
        "guitar",
        "harp",
        "organ",
        "piano",
        "trumpet",
        "violin",
    },
    "tool": {"axe", "chisel", "drill", "hammer", "knife", "ladder", "rake", "saw", "shovel", "wrench"},
    "trade": {
        "baker",
        "barber",
        "doctor",
        "farmer",
        "judge",
        "lawyer",
        "nurse",
        "painter",
        "pilot",
        "teacher",
    },
    "vehicle": {"bicycle", "bus", "car", "ferry", "ship", "tractor", "train", "tram", "truck", "van"},
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def question(row: dict) -> str:
    return row["prompt"][0]["content"]


def solve(prompt: str) -> tuple[str, tuple, str]:
    """Return skill, what is asked about (in an order-free form) and the right answer, in lower case."""
    text = prompt.lower()
    if found := re.search(r"(larger|smaller)\D+(\d+)\D+(\d+)", text):
        a, b = sorted(map(int, found.group(2, 3)))
        return "compare", (a, b), str(b if found[1] == "larger" else a)
    if found := re.search(r"(\d+) (?:plus|and|\+) (\d+)", text):
        a, b = sorted(map(int, found.groups()))
        return "add", (a, b), str(a + b)
    if found := re.search(r"(after|before) (\d+)\?", text):
        number = int(found[2])
        return "neighbour", (number,), str(number + (1 if found[1] == "after" else -1))
    if found := re.search(r"how many words .*: (.+)\?|count .*: (.+)\.", text):
        words = (found[1] or found[2]).split(", ")
        return "count", tuple(sorted(words)), next(word for word, n in NUMBERS.items() if n == len(words))
    if found := re.search(r"(?:backwards|reverse .*): (.+)\.", text):
        words = found[1].split(", ")
        return "backwards", tuple(sorted(words)), ", ".join(reversed(words))
    a, b = sorted(re.search(r"(\w+) or (\w+)", text).groups())
    kind = next(words for name, words in KINDS.items() if re.search(rf"\ban? {name}\b", text))
    assert (a in kind) != (b in kind), prompt
    return "category", (a, b), a if a in kind else b


def said(prompt: str, answer: str) -> str:
    """Return the one thing an answer claims."""
    skill, asked, _ = solve(prompt)
    text = answer.lower().rstrip(".")
    if skill == "backwards":
        return ", ".join(re.findall(r"\w+", text)[-3:])
    if skill == "count":
        return next(word for word in re.findall(r"\w+", text) if word in NUMBERS)
    if skill == "category":
        return next(word for word in re.findall(r"\w+", text) if word in asked)
    return re.findall(r"\d+", text)[-1]


def gapped(answer: str, claim: str) -> str:
    """Return the answer with a gap where its claim stood."""
    # The last place that holds it, as a sum may also quote the question; whole words, as "hat" is in "that".
    before, after = re.fullmatch(rf"(.*)\b{claim}\b(.*)", answer.lower()).groups()
    return f"{before}_{after}"


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_chosen_is_right_and_rejected_is_wrong(name: str) -> None:
    for row in read(name):
        prompt, chosen, rejected = (row[field][0]["content"] for field in ("prompt", "chosen", "rejected"))
        _, _, right = solve(prompt)
        assert said(prompt, chosen) == right, row
        assert said(prompt, rejected) != right, row
        # The same sentence with another filling: nothing but the claim tells the two apart.
        assert gapped(chosen, right) == gapped(rejected, said(prompt, rejected)), row


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_rows_are_single_turn_chats(name: str) -> None:
    for row in read(name):
        assert {field: [turn["role"] for turn in turns] for field, turns in row.items()} == {
            "prompt": ["user"],
            "chosen": ["assistant"],
            "rejected": ["assistant"],
        }


def test_sizes_and_balance_of_skills() -> None:
    for name, per_skill in (("train", 500), ("heldout", 70)):
        skills = Counter(solve(question(row))[0] for row in read(name))
        assert len(skills) == 6
        assert set(skills.values()) == {per_skill}
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size < 4_000_000


def test_no_prompt_twice_and_none_on_both_sides() -> None:
    prompts = [question(row) for row in chain(read("train"), read("heldout"))]
    assert len(prompts) == len(set(prompts))


def test_heldout_questions_are_new_however_phrased() -> None:
    train = {solve(question(row))[:2] for row in read("train")}
    heldout = [solve(question(row))[:2] for row in read("heldout")]
    assert len(heldout) == len(set(heldout))
    assert train.isdisjoint(heldout)


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_length_does_not_tell_which_answer_is_right(name: str) -> None:
    wins = []
    for row in read(name):
        longer = len(row["chosen"][0]["content"]) - len(row["rejected"][0]["content"])
        wins.append(0.5 if longer == 0 else float(longer > 0))
    assert 0.45 <= sum(wins) / len(wins) <= 0.55


def test_the_place_of_the_right_answer_in_the_question_does_not_tell() -> None:
    rows = [row for row in read("train") if solve(question(row))[0] in {"compare", "category"}]
    firsts = []
    for row in rows:
        _, asked, right = solve(question(row))
        places = {str(item): re.search(rf"\b{item}\b", question(row)).start() for item in asked}
        firsts.append(places[right] == min(places.values()))
    assert 0.45 <= sum(firsts) / len(firsts) <= 0.55


def test_generator_gives_the_committed_pairs() -> None:
    script = FOLDER.parent.parent / "scripts" / "make_quickstart.py"
    module = runpy.run_path(str(script))
    train, heldout, forbidden = module["make_pairs"](0)
    assert train == read("train")
    assert heldout == read("heldout")
    assert len(forbidden) == len(heldout)


def test_tokenizer_knows_turns_and_single_digits() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "model")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|pad|>", None)
    assert tokenizer("12 + 9").input_ids == tokenizer("1").input_ids + tokenizer("2 + 9").input_ids
    rows = read("heldout")
    prompts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True) for row in rows]
    whole = [tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]]) for row in rows]
    for prompt, full in zip((p["input_ids"] for p in prompts), (w["input_ids"] for w in whole), strict=True):
        assert full[: len(prompt)] == prompt
        assert full[len(prompt) :].count(tokenizer.eos_token_id) == 1
        assert len(full) <= 64
