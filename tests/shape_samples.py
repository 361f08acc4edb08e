"""Good rows of every shape, and of the variants of some: all made of the same few exchanges.

All rows of a list have the same columns with values of the same types, so that they can be written as Parquet
and as a hub data set too.
"""

from __future__ import annotations

import json
from typing import Any

Rows = list[dict[str, Any]]

EXCHANGES = [
    ("Which planet is nearest to the sun?", "Mercury is the nearest one.", "That would be the moon."),
    ("Name a fruit that is yellow.", "A banana is yellow.", "Yellow is a nice colour, is it not?"),
    ("How many legs has a spider?", "It has eight legs.", "Four, like a table."),
    ("Translate 'good morning' into German.", "Guten Morgen.", "Good night."),
    ("What is two plus three?", "Two plus three is five.", "Twenty-three, I suppose."),
    ("When should bread go into the oven?", "Once the oven is hot.", "Bread, oven, hot, bread, oven."),
    ("Give me a word that rhymes with 'tree'.", "'Free' rhymes with it.", "No."),
    ("Is water wet? Answer in one word.", "Yes.", "That depends on many things, of which the first is old."),
]
_SYSTEM = "You are a patient teacher."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def _turns(question: str) -> Rows:
    """Return a system turn and an exchange before the question."""
    return [system(_SYSTEM), user("May I ask something?"), assistant("Please do."), user(question)]


def _transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: Hello!\n\nAssistant: Hello.\n\nHuman: {question}\n\nAssistant: {answer}"


def _ranked(question: str, good: str, bad: str) -> dict[str, Any]:
    answers = [
        {"text": bad, "score": 1.5},
        {"text": good, "score": 4.0},
        {"text": f"Well: {good}", "score": 3.0},
    ]
    return {"prompt": question, "completions": answers}


def _judged(rows: Rows) -> Rows:
    """Return one row for each answer, first all the good ones, then all the bad ones."""
    return [
        {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
        for key in ("chosen", "rejected")
        for row in rows
    ]


_TEXTS: Rows = [{"prompt": f"{q}\n", "chosen": good, "rejected": bad} for q, good, bad in EXCHANGES]
_MESSAGES: Rows = [
    {"prompt": _turns(q), "chosen": [assistant(good)], "rejected": [assistant(bad)]}
    for q, good, bad in EXCHANGES
]

SAMPLES: dict[str, Rows] = {
    "explicit text": _TEXTS,
    "explicit messages": _MESSAGES,
    "implicit text": [
        {"chosen": f"Q: {q}\nA: {good}", "rejected": f"Q: {q}\nA: {bad}"} for q, good, bad in EXCHANGES
    ],
    "implicit messages": [
        {"chosen": [*_turns(q), assistant(good)], "rejected": [*_turns(q), assistant(bad)]}
        for q, good, bad in EXCHANGES
    ],
    "openai": [
        {
            "input": {"messages": [user(q)]},
            "preferred_output": [assistant(good)],
            "non_preferred_output": [assistant(bad)],
        }
        for q, good, bad in EXCHANGES
    ],
    "conversation": [
        {"conversations": [human(q)], "chosen": gpt(good), "rejected": gpt(bad)} for q, good, bad in EXCHANGES
    ],
    "hh": [{"chosen": _transcript(q, good), "rejected": _transcript(q, bad)} for q, good, bad in EXCHANGES],
    "orca": [
        {"system": _SYSTEM if i % 2 else "", "question": q, "chosen": good, "rejected": bad}
        for i, (q, good, bad) in enumerate(EXCHANGES)
    ],
    "instruction": [
        {"instruction": "Answer the question.", "input": q, "output": [good, bad]}
        for q, good, bad in EXCHANGES
    ],
    "argilla": [
        {
            "instruction": q,
            "chosen_response": good,
            "rejected_response": bad,
            "chosen_avg_rating": 4.5,
            "rejected_avg_rating": 2.0,
        }
        for q, good, bad in EXCHANGES
    ],
    "swift": [
        {"messages": [user(q), assistant(good)], "rejected_response": bad} for q, good, bad in EXCHANGES
    ],
    "ranked": [_ranked(*exchange) for exchange in EXCHANGES],
    "unpaired text": _judged(_TEXTS),
    "unpaired messages": _judged(_MESSAGES),
}
"""By the name of the shape."""

_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "look_up", "arguments": json.dumps({"word": "tree"})},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}

VARIANTS: dict[str, tuple[str, Rows]] = {
    "UltraFeedback-binarized": (
        "explicit messages",
        [
            {
                "prompt": q,
                "prompt_id": f"id{i}",
                "chosen": [user(q), assistant(good)],
                "rejected": [user(q), assistant(bad)],
                "messages": [user(q), assistant(good)],
                "score_chosen": 8.0,
                "score_rejected": 3.5,
            }
            for i, (q, good, bad) in enumerate(EXCHANGES)
        ],
    ),
    "Argilla mix with conversations": (
        "implicit messages",
        [
            {
                "dataset": "mix",
                "chosen": [user(q), assistant(good)],
                "rejected": [user(q), assistant(bad)],
                "chosen_rating": 5.0,
                "rejected_rating": 2.5,
            }
            for q, good, bad in EXCHANGES
        ],
    ),
    "ShareGPT, multi-turn, with a system turn": (
        "conversation",
        [
            {
                "conversations": [human("Hello!"), gpt("Hello."), human(q)],
                "chosen": gpt(good),
                "rejected": gpt(bad),
                "system": _SYSTEM,
            }
            for q, good, bad in EXCHANGES
        ],
    ),
    "OpenAI roles": (
        "conversation",
        [
            {"messages": _turns(q), "chosen": assistant(good), "rejected": assistant(bad)}
            for q, good, bad in EXCHANGES
        ],
    ),
    "tool calls": (
        "explicit messages",
        [
            {
                "prompt": [
                    user(q),
                    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
                    {"role": "tool", "content": "a plant", "tool_call_id": "call00001", "name": "look_up"},
                ],
                "chosen": [assistant(good)],
                "rejected": [assistant(bad)],
                "tools": json.dumps([_TOOL]),
            }
            for q, good, bad in EXCHANGES
        ],
    ),
    "a named preference": (
        "instruction",
        [
            {"instruction": q, "input": "", "output_1": bad, "output_2": good, "preference": 2}
            for q, good, bad in EXCHANGES
        ],
    ),
    "lists of answers and ranks": (
        "ranked",
        [{"instruction": q, "responses": [good, bad], "ranks": [1, 2]} for q, good, bad in EXCHANGES],
    ),
    "a judged conversation": (
        "unpaired messages",
        [
            {"messages": [user(q), assistant(answer)], "label": answer == good}
            for q, good, bad in EXCHANGES
            for answer in (good, bad)
        ],
    ),
}
"""Other columns and messages that are in use: the shape each is read as, and rows."""
