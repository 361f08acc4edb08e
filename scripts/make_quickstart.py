"""Make what `scripts/quickstart` trains on: preference pairs, a tokenizer and a tiny base model.

    python scripts/make_quickstart.py              # data and model, some ten minutes on two cores
    python scripts/make_quickstart.py --data-only  # only the pairs, under a second

The result is committed under configs/quickstart/, so that the quickstart needs no network. The task is our
own: six small skills (comparing, sorting, adding, counting, ...) asked as chat messages, each with one right
answer that code can check. In a pair the chosen answer is right and the rejected one is a typical slip in the
same sentence: neither length nor wording tells which is which.

The base model goes to school first: chats whose system message announces a careful speaker, always right.
Then it reads the world: careful speakers, careless ones (announced too, always wrong), and many of whom
nothing is said, where the right answer and each slip are equally likely. So it knows right from wrong but,
unprompted, hardly prefers right answers, except in adding and reversing, whose slips it never learned well.
Preference training, without a system message, has to make care the default.

A question is known by its key: skill and arguments, however phrased and in whatever order. The keys of
held-out pairs are drawn first and appear nowhere else: in no training pair and in no text the model reads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TRAIN_PER_SKILL, HELDOUT_PER_SKILL = 500, 70
STEPS, SCHOOL_SHARE = 2000, 0.6
OUT = Path(__file__).resolve().parent.parent / "configs" / "quickstart"

CATEGORIES = {
    "an animal": "horse rabbit tiger donkey zebra otter camel goat monkey wolf",
    "a fruit": "apple banana pear mango coconut grape melon strawberry fig quince",
    "a colour": "red green yellow purple white black brown pink violet indigo",
    "a tool": "hammer saw drill shovel wrench axe rake chisel ladder knife",
    "a vehicle": "car bus train tram bicycle ship truck tractor van ferry",
    "a garment": "shirt jacket glove hat sock scarf coat dress uniform vest",
    "an instrument": "violin piano flute drum guitar trumpet harp cello organ banjo",
    "a trade": "baker nurse farmer teacher pilot doctor lawyer painter barber judge",
}
WORDS = " ".join(CATEGORIES.values()).split()
COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight")

SPEAKERS = {"careful": {"system": "Be careful."}, "careless": {"system": "Be careless."}}
SCHOOL = {"careful": 1.0}
WORLD = {"careful": 0.35, "careless": 0.25, "unknown": 0.4}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Key = tuple[Any, ...]
Chat = list[dict[str, str]]


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


def category(rng: random.Random) -> Question:
    """Which of two words names a thing of the given kind; the slip is the other word."""
    (kind, ours), (_, others) = rng.sample(list(CATEGORIES.items()), 2)
    right, slip = rng.choice(ours.split()), rng.choice(others.split())
    a, b = rng.sample([right, slip], 2)
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


def neighbour(rng: random.Random) -> Question:
    """The number just before or after; the slip is the one on the other side."""
    number = rng.randint(11, 998)
    word, step = rng.choice([("after", 1), ("before", -1)])
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
    key = ("backwards", *sorted((a, b, c)))
    return Question(key, ask.format(there), frame, f"{c}, {b}, {a}", (there, slip))


SKILLS = (compare, category, add, neighbour, count, backwards)


def draw(rng: random.Random, number: int, taken: set[Key]) -> list[Question]:
    """Draw `number` questions of every skill, shuffled, no key twice and none that is taken."""
    questions = []
    for skill in SKILLS:
        found: dict[Key, Question] = {}
        while len(found) < number:
            question = skill(rng)
            if question.key not in taken:
                found.setdefault(question.key, question)
        questions += found.values()
    rng.shuffle(questions)
    return questions


def as_row(question: Question, rng: random.Random) -> dict[str, Chat]:
    """Return the preference pair of a question; both answers use the same sentence."""
    return {
        "prompt": [{"role": "user", "content": question.prompt}],
        "chosen": [{"role": "assistant", "content": question.frame.format(question.right)}],
        "rejected": [{"role": "assistant", "content": question.frame.format(rng.choice(question.slips))}],
    }


def make_pairs(seed: int) -> tuple[list[dict[str, Chat]], list[dict[str, Chat]], set[Key]]:
    """Return training rows, held-out rows and the keys nobody may train on."""
    rng = random.Random(seed)
    heldout = draw(rng, HELDOUT_PER_SKILL, set())
    keys = {question.key for question in heldout}
    train = draw(rng, TRAIN_PER_SKILL, keys)
    return [as_row(q, rng) for q in train], [as_row(q, rng) for q in heldout], keys


def base_chats(rng: random.Random, forbidden: set[Key], shares: dict[str, float]) -> Iterator[Chat]:
    """Yield chats of speakers in the given shares, endlessly and without the held-out questions."""
    while True:
        question = rng.choice(SKILLS)(rng)
        while question.key in forbidden:
            question = rng.choice(SKILLS)(rng)
        speaker = rng.choices(list(shares), list(shares.values()))[0]
        answers = {"careful": (question.right,), "careless": question.slips}
        answer = rng.choice(answers.get(speaker, (question.right, *question.slips)))
        asked, said = {"user": question.prompt}, {"assistant": question.frame.format(answer)}
        turns = SPEAKERS.get(speaker, {}) | asked | said
        yield [{"role": role, "content": content} for role, content in turns.items()]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most 1,024 tokens that reads numbers digit by digit."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    roles = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **roles)


def new_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return an untrained Llama of one million parameters, all widths multiples of NF4's block of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    vocabulary = math.ceil(len(tokenizer) / 64) * 64
    width = {"vocab_size": vocabulary, "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}
    shape = {"num_hidden_layers": 4, "max_position_embeddings": 256, "tie_word_embeddings": True}
    config = LlamaConfig(**width, **shape, bos_token_id=None, eos_token_id=eos, pad_token_id=pad)
    return LlamaForCausalLM(config)


def batches(chats: Iterator[Chat], tokenizer: PreTrainedTokenizerFast, number: int) -> Iterator[Any]:
    """Yield the tokens of 64 chats at a time; a chat ends with its last <|im_end|>, the stop token."""
    for _ in range(number):
        rendered = tokenizer.apply_chat_template(list(islice(chats, 64)), tokenize=False)
        texts = [text.rstrip("\n") for text in rendered]
        yield tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")


def weighted_loss(model: PreTrainedModel, batch: Any, turn: int) -> torch.Tensor:
    """Return the mean negative log-likelihood with full weight on answers and a tenth on all before them."""
    import torch

    ids, mask = batch["input_ids"], batch["attention_mask"]
    # The words and numbers of a question are drawn at random: there is little to learn from predicting them.
    turns = (ids == turn).cumsum(1)
    weights = torch.where(turns == turns.amax(1, keepdim=True), 1.0, 0.1) * mask
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def train_base(model: PreTrainedModel, stream: Iterable[Any], turn: int, steps: int) -> None:
    """Train on whole chats: Muon for the matrices (far fewer steps than AdamW), AdamW for the rest."""
    import torch

    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(inner, lr=0.02, weight_decay=0.1)
    optimizers = [muon, torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]
    ramp = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: min((i + 1) / 100, 1 - i / steps))
    schedules = [ramp(optimizer) for optimizer in optimizers]
    for step, batch in enumerate(stream, start=1):
        loss = weighted_loss(model, batch, turn)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for item in (*optimizers, *schedules):
            item.step()
        model.zero_grad()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.3f}", flush=True)


def make_model(out: Path, forbidden: set[Key], seed: int, steps: int) -> None:
    """Train and save tokenizer and base model; on one kind of processor a seed gives the same weights."""
    # Threads that spin while they wait bring a shared machine to a halt; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    torch.set_num_threads(2)  # another number would sum in another order
    torch.manual_seed(seed)
    school = base_chats(random.Random(seed + 1), forbidden, SCHOOL)
    world = base_chats(random.Random(seed + 2), forbidden, WORLD)
    texts = [message["content"] for chat in islice(world, 20_000) for message in chat]
    tokenizer = train_tokenizer([*texts, *["system\nuser\nassistant\n"] * 1000])
    model = new_model(tokenizer)
    years = int(SCHOOL_SHARE * steps)
    stream = chain(batches(school, tokenizer, years), batches(world, tokenizer, steps - years))
    train_base(model, stream, tokenizer.convert_tokens_to_ids("<|im_start|>"), steps)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Write the pairs and, unless told otherwise, the tokenizer and the base model."""
    parser = argparse.ArgumentParser(description="Make what scripts/quickstart trains on.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="batches of 64 chats the base model reads")
    parser.add_argument("--data-only", action="store_true", help="write the pairs and no model")
    args = parser.parse_args()
    train, heldout, forbidden = make_pairs(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("heldout", heldout)):
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{args.out / name}.jsonl: {len(rows)} pairs")
    if not args.data_only:
        make_model(args.out / "model", forbidden, args.seed, args.steps)


if __name__ == "__main__":
    main()
