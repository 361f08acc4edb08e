"""Make everything `scripts/quickstart` trains on: preference pairs, a tokenizer and a tiny base model.

    python scripts/make_quickstart.py              # data and model, about ten minutes on two cores
    python scripts/make_quickstart.py --data-only  # only the pairs, under a second

The result is committed under configs/quickstart/, so that the quickstart needs no network. The task is our own:
eight small skills (comparing, ordering, adding, counting, ...) asked as chat messages, each with one right answer
that code can check. In a pair the chosen answer is right and the rejected one is a typical slip, in the same
sentence: neither length nor wording tells which is which.

The base model has read chats in which nobody says how reliable the speaker is: there the right answer and each slip
are equally likely, so it prefers neither. It has also read chats opened by a system message, of a careful speaker
(always right) and of a careless one (always wrong): from these it can learn what right and wrong are. Preference
training, whose prompts have no system message, then has to make the careful speaker the default.

A question is known by its key (skill and arguments, however phrased and in whatever order). The keys of the held-out
pairs are drawn first and appear nowhere else: neither in the training pairs nor in a text the base model read.
"""

from __future__ import annotations

import argparse
import calendar
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TRAIN_PER_SKILL = 375
HELDOUT_PER_SKILL = 50
OUT = Path(__file__).resolve().parent.parent / "configs" / "quickstart"

CATEGORIES = {
    "an animal": "horse rabbit tiger donkey zebra otter camel goat monkey wolf",
    "a fruit": "apple banana cherry mango lemon plum grape melon apricot fig",
    "a colour": "red green yellow purple white black brown pink violet indigo",
    "a tool": "hammer saw drill shovel wrench axe rake chisel ladder knife",
    "a vehicle": "car bus train tram bicycle ship truck plane van ferry",
    "a garment": "shirt jacket glove hat sock scarf coat dress uniform vest",
    "an instrument": "violin piano flute drum guitar trumpet harp cello organ banjo",
    "a tree": "oak maple willow birch elm ash cedar spruce yew juniper",
}
CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words.split()}
WORDS = sorted(CATEGORY_OF)
DAYS = list(calendar.day_name)
MONTHS = list(calendar.month_name)[1:]
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight")

SPEAKERS = {"careful": "Be careful.", "careless": "Be careless."}
SPEAKER_SHARES = {"careful": 0.4, "careless": 0.2, "unknown": 0.4}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Key = tuple[Any, ...]


class Question(NamedTuple):
    """A prompt, a sentence with a gap, and what may fill the gap; `slips` are the wrong fillings."""

    key: Key
    prompt: str
    frame: str
    right: str
    slips: tuple[str, ...]


def compare(rng: random.Random) -> Question:
    """Which of two numbers is larger or smaller; the slip is the other number."""
    pair = rng.sample(range(10, 100), 2)
    largest = rng.random() < 0.5
    word = "larger" if largest else "smaller"
    right, slip = sorted(pair, reverse=largest)
    ask = rng.choice(["Which number is {w}, {a} or {b}?", "Tell me the {w} of {a} and {b}."])
    frame = rng.choice([f"The {word} number is {{}}.", f"{{}} is {word}.", f"The {word} of them is {{}}."])
    prompt = ask.format(w=word, a=pair[0], b=pair[1])
    return Question(("compare", *sorted(pair)), prompt, frame, str(right), (str(slip),))


def alphabet(rng: random.Random) -> Question:
    """Which of two words stands first or last in a dictionary; the slip is the other word."""
    pair = rng.sample(WORDS, 2)
    last = rng.random() < 0.5
    word = "last" if last else "first"
    right, slip = sorted(pair, reverse=last)
    ask = rng.choice(["Which comes {w} in the alphabet, {a} or {b}?", "In a dictionary, is {a} or {b} {w}?"])
    frame = rng.choice([f"The {word} one is {{}}.", f"In the alphabet {{}} comes {word}.", "It is {}."])
    prompt = ask.format(w=word, a=pair[0], b=pair[1])
    return Question(("alphabet", *sorted(pair)), prompt, frame, right, (slip,))


def category(rng: random.Random) -> Question:
    """Which of two words names a thing of the given kind; the slip is the other word."""
    right, slip = rng.sample(WORDS, 2)
    while CATEGORY_OF[right] == CATEGORY_OF[slip]:
        right, slip = rng.sample(WORDS, 2)
    a, b = rng.sample([right, slip], 2)
    kind = CATEGORY_OF[right]
    ask = rng.choice(["Which word names {k}, {a} or {b}?", "Is {a} or {b} the name of {k}?"])
    frame = rng.choice([f"The word {{}} names {kind}.", "The right word is {}.", f"It is {{}}, {kind}."])
    return Question(("category", *sorted((a, b))), ask.format(k=kind, a=a, b=b), frame, right, (slip,))


def add(rng: random.Random) -> Question:
    """A small sum; the slips are one or ten off."""
    a, b = rng.randint(11, 49), rng.randint(2, 49)
    total = a + b
    prompt = rng.choice(["What is {a} plus {b}?", "Please add {a} and {b}.", "How much is {a} + {b}?"])
    frame = rng.choice(["The sum is {}.", "It is {}.", f"{a} plus {b} makes {{}}."])
    slips = tuple(str(total + off) for off in (-10, -1, 1, 10))
    return Question(("add", *sorted((a, b))), prompt.format(a=a, b=b), frame, str(total), slips)


def date(rng: random.Random) -> Question:
    """A day or month some steps away; the slip counts in the wrong direction."""
    unit, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    # Half a turn is the same in both directions: no slip to be made.
    steps = rng.choice([n for n in range(1, len(names)) if 2 * n != len(names)])
    start, after = rng.randrange(len(names)), rng.random() < 0.5
    shift, word = (steps, "after") if after else (-steps, "before")
    span = f"{steps} {unit}{'s' * (steps > 1)}"
    ask = rng.choice(["Which {u} is {s} {w} {n}?", "Name the {u} {s} {w} {n}."])
    prompt = ask.format(u=unit, s=span, w=word, n=names[start])
    frame = rng.choice(["It is {}.", f"That {unit} is {{}}.", f"{span} {word} {names[start]} is {{}}."])
    right, slip = names[(start + shift) % len(names)], names[(start - shift) % len(names)]
    return Question(("date", names[start], shift), prompt, frame, right, (slip,))


def neighbour(rng: random.Random) -> Question:
    """The number just before or after; the slip is the one on the other side."""
    number, after = rng.randint(11, 998), rng.random() < 0.5
    word = "after" if after else "before"
    step = 1 if after else -1
    ask = rng.choice(["What number comes right {w} {n}?", "Counting up, what is just {w} {n}?"])
    frame = rng.choice(["It is {}.", "That number is {}.", f"Right {word} {number} comes {{}}."])
    prompt = ask.format(w=word, n=number)
    return Question(("neighbour", number), prompt, frame, str(number + step), (str(number - step),))


def count(rng: random.Random) -> Question:
    """How many words a list has; the slips are one off."""
    number = rng.randint(3, 7)
    words = tuple(rng.sample(WORDS, number))
    ask = rng.choice(["How many words are in this list: {}?", "Count these words: {}."])
    frame = rng.choice(["The list has {} words.", "There are {} words.", "I count {}."])
    slips = tuple(COUNTS[number - 1 + off] for off in (-1, 1))
    return Question(("count", *sorted(words)), ask.format(", ".join(words)), frame, COUNTS[number - 1], slips)


def backwards(rng: random.Random) -> Question:
    """Three words in reverse order; the slips leave the order alone or only move the last word."""
    a, b, c = rng.sample(WORDS, 3)
    ask = rng.choice(["Say these words backwards: {}.", "Reverse the order of these words: {}."])
    frame = rng.choice(["Backwards it reads {}.", "In reverse order: {}.", "That gives {}."])
    there, slip = f"{a}, {b}, {c}", f"{c}, {a}, {b}"
    return Question(
        ("backwards", *sorted((a, b, c))), ask.format(there), frame, f"{c}, {b}, {a}", (there, slip)
    )


SKILLS = (compare, alphabet, category, add, date, neighbour, count, backwards)


def draw(rng: random.Random, number: int, taken: set[Key], *, one_per_key: bool) -> list[Question]:
    """Draw `number` questions of every skill, shuffled, with distinct prompts and none of the `taken` keys."""
    questions = []
    for skill in SKILLS:
        found: dict[Any, Question] = {}
        while len(found) < number:
            question = skill(rng)
            if question.key not in taken:
                found.setdefault(question.key if one_per_key else question.prompt, question)
        questions += found.values()
    rng.shuffle(questions)
    return questions


def as_row(question: Question, rng: random.Random) -> dict[str, list[dict[str, str]]]:
    """Return the preference pair of a question; both answers use the same sentence."""
    wrong = rng.choice(question.slips)
    return {
        "prompt": [{"role": "user", "content": question.prompt}],
        "chosen": [{"role": "assistant", "content": question.frame.format(question.right)}],
        "rejected": [{"role": "assistant", "content": question.frame.format(wrong)}],
    }


def make_pairs(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], set[Key]]:
    """Return training rows, held-out rows and the keys nobody may train on."""
    rng = random.Random(seed)
    heldout = draw(rng, HELDOUT_PER_SKILL, set(), one_per_key=True)
    keys = {question.key for question in heldout}
    train = draw(rng, TRAIN_PER_SKILL, keys, one_per_key=False)
    return [as_row(q, rng) for q in train], [as_row(q, rng) for q in heldout], keys


def base_chats(rng: random.Random, forbidden: set[Key]) -> Iterator[list[dict[str, str]]]:
    """Yield the chats the base model reads, endlessly and without the held-out questions."""
    while True:
        question = rng.choice(SKILLS)(rng)
        if question.key in forbidden:
            continue
        speaker = rng.choices(list(SPEAKER_SHARES), list(SPEAKER_SHARES.values()))[0]
        said = {"careful": (question.right,), "careless": question.slips}
        answer = rng.choice(said.get(speaker, (question.right, *question.slips)))
        system = [{"role": "system", "content": SPEAKERS[speaker]}] if speaker in SPEAKERS else []
        yield [
            *system,
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": question.frame.format(answer)},
        ]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most 1,024 tokens that reads numbers digit by digit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return an untrained Llama of one million parameters; all widths are multiples of the NF4 block of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(chats: Iterator[Any], tokenizer: PreTrainedTokenizerFast) -> Iterator[Any]:
    """Yield 64 chats at a time as right-padded tokens; a chat ends with its last <|im_end|>, the stop token."""
    while True:
        chosen = [next(chats) for _ in range(64)]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n") for chat in chosen]
        yield tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")


def weighted_loss(model: PreTrainedModel, batch: Any, turn: int) -> torch.Tensor:
    """Return the mean negative log-likelihood with full weight on answers and a tenth on all before them.

    The names and numbers of a question are drawn at random: nothing is to be learned from predicting them.
    """
    import torch

    ids, mask = batch["input_ids"], batch["attention_mask"]
    turns = (ids == turn).cumsum(1)
    weights = torch.where(turns == turns.amax(1, keepdim=True), 1.0, 0.1) * mask
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def train_base(model: PreTrainedModel, stream: Iterator[Any], turn: int, steps: int) -> None:
    """Train on whole chats: Muon for the matrices (far fewer steps than AdamW), AdamW for the rest."""
    import torch

    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(inner, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 100, (steps - i) / steps))
        for optimizer in optimizers
    ]
    began = time.monotonic()
    for step in range(1, steps + 1):
        loss = weighted_loss(model, next(stream), turn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for item in (*optimizers, *schedules):
            item.step()
        model.zero_grad()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True
            )


def main() -> None:
    """Write the pairs and, unless told otherwise, the tokenizer and the base model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000, help="batches of 64 chats the base model reads")
    parser.add_argument("--data-only", action="store_true")
    args = parser.parse_args()
    train, heldout, forbidden = make_pairs(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("heldout", heldout)):
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{args.out / name}.jsonl: {len(rows)} pairs")
    if args.data_only:
        return

    import torch

    torch.set_num_threads(2)  # more threads would change the sums, and with them the committed weights
    torch.manual_seed(args.seed)
    chats = base_chats(random.Random(args.seed + 1), forbidden)
    plain = [message["content"] for _, chat in zip(range(20_000), chats, strict=False) for message in chat]
    tokenizer = train_tokenizer([*plain, *["system\nuser\nassistant\n"] * 1000])
    model = new_model(tokenizer)
    turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
    train_base(model, batches(chats, tokenizer), turn, args.steps)
    model.to(torch.bfloat16).save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
