"""`generate`: answers to a file of prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning import __version__

if TYPE_CHECKING:
    from orpo_lightning.using.answer_file import Asked
    from orpo_lightning.using.generation import Answer, Sampling
    from orpo_lightning.using.trained import Loaded, Trained

HELP = """usage: orpo-lightning generate MODEL --prompts FILE.jsonl --out FILE.jsonl [OPTIONS]

Answers every row of a file: the row comes out again with the key answer behind its own. A row has a prompt,
which is text (taken as it is) or messages (through the chat template, as in training); or messages; or it is
a pair with chosen and rejected, whose prompt is answered. Rows of like length are answered together, and an
answer does not depend on the others. What is done is kept in OUT.partial: after a kill, the same command goes
on from there.

options:
  MODEL                   a run's folder, an adapter's, a model's, or a hub id
  --prompts FILE          JSON lines (or .json, .parquet, .csv); - reads standard input
  --out FILE              JSON lines; - writes standard output, once all rows are answered
  --max_new_tokens N      most tokens of an answer (default 256)
  --temperature T         0 takes the likeliest token each time (default)
  --top_p P               draw from the likeliest tokens that have this share (default 1)
  --seed N                of what is drawn (default 0)
  --batch_size N          rows at a time (default 16)
  --chat_template NAME    instead of the tokenizer's: chatml, llama-3, ..., or a .jinja file
  --side_by_side          the base's answer too, under base_answer
  --base NAME             instead of the base that the adapter names
  --quantization KIND     none, nf4, int8 (default: as the adapter was trained)
  --accelerator KIND      auto, gpu, cpu
  --trust_remote_code     run Python code that comes with the model

examples:
  orpo-lightning generate runs/quickstart --prompts configs/quickstart/heldout.jsonl --out answers.jsonl
  orpo-lightning generate runs/quickstart --prompts - --out - --side_by_side < prompts.jsonl
"""
_MEMORY = "lower --batch_size or --max_new_tokens, or set --quantization nf4"


def main(args: list[str]) -> int:
    """Run the command and return its exit code."""
    from orpo_lightning.commands.guard import run_verb

    return run_verb(args, HELP, _generate, memory=_MEMORY)


def _generate(args: list[str]) -> int:
    from orpo_lightning.errors import UsageError
    from orpo_lightning.using.answer_file import read_prompts, write_rows
    from orpo_lightning.using.generation import Sampling
    from orpo_lightning.using.trained import find

    options = _parse(args)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed).check()
    if options.batch_size < 1:
        raise UsageError(f"--batch_size: expected 1 or more, found {options.batch_size}")
    out = None if options.out == "-" else Path(options.out).expanduser()
    if out is not None and (out.exists() or not out.absolute().parent.is_dir()):
        found = f"{out} is there already" if out.exists() else f"there is no folder {out.parent}"
        raise UsageError(f"--out: {found}: name another file")
    asked = read_prompts(options.prompts, sys.stdin.buffer)
    trained = find(
        options.model,
        base=options.base,
        quantization=options.quantization,
        trust_remote_code=options.trust_remote_code,
    )
    if options.side_by_side and trained.adapter is None:
        raise UsageError(f"--side_by_side: {options.model} is a whole model: it has no adapter to switch off")
    rows = _answered(trained, asked, sampling, options, out)
    if out is None:
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return 0
    write_rows(rows, out)
    _partial(out).unlink(missing_ok=True)
    _tell(f"written to {out}")
    return 0


def _parse(args: list[str]) -> Any:
    from orpo_lightning.commands.words import Words

    words = Words("generate")
    words.add_model()
    words.add_argument("--prompts", required=True)
    words.add_argument("--out", required=True)
    words.add_sampling()
    words.add_argument("--batch_size", type=int, default=16)
    words.add_argument("--chat_template", default=None)
    words.add_argument("--side_by_side", action="store_true")
    return words.parse_args(args)


def _answered(
    trained: Trained, asked: list[Asked], sampling: Sampling, options: Any, out: Path | None
) -> list[dict[str, Any]]:
    """Return the rows with their answers."""
    from orpo_lightning.data.prompts import describe
    from orpo_lightning.data.templates import read_template
    from orpo_lightning.errors import DataError
    from orpo_lightning.using.answer_file import KEYS, Plan, answer_all
    from orpo_lightning.using.generation import Answerer
    from orpo_lightning.using.trained import load

    loaded = load(trained, accelerator=options.accelerator)
    if options.chat_template is not None:
        loaded.tokenizer.chat_template = read_template(options.chat_template)
    answerer = Answerer(loaded.model, loaded.tokenizer)
    ids = answerer.prompts.encode([one.prompt for one in asked])
    for one, prompt in zip(asked, ids, strict=True):
        if answerer.room(prompt, sampling) < 1:
            raise DataError(
                f"{one.prompt.where}: the prompt's {len(prompt):,} tokens leave no room for an answer: the "
                f"model's context is {answerer.context:,}"
            )
    for label, text in loaded.rows.items():
        _tell(f"{label:<14}{text}")
    _tell(f"{'prompts':<14}{describe(one.prompt for one in asked)}")
    _tell(f"{'answers':<14}{sampling.describe()}")
    for note in answerer.prompts.notes:
        _tell(f"{'note':<14}{note}")

    def answer(places: list[int]) -> list[list[Answer]]:
        return _of_both(loaded, answerer, [ids[place] for place in places], sampling, places, options)

    settings = _settings(trained, loaded, options)
    plan = Plan(asked, ids, sampling, options.batch_size, settings)
    answers = answer_all(plan, answerer, answer, None if out is None else _partial(out), _tell)
    return [
        one.row | {key: answer["text"] for key, answer in zip(KEYS, row, strict=False)}
        for one, row in zip(asked, answers, strict=True)
    ]


def _of_both(
    loaded: Loaded, answerer: Any, ids: list[list[int]], sampling: Sampling, keys: list[int], options: Any
) -> list[list[Answer]]:
    """Return for each row the model's answer and, side by side, the base's."""
    of_model = answerer.answers(ids, sampling, keys=keys, batch_size=options.batch_size)
    if not options.side_by_side:
        return [[answer] for answer in of_model]
    with loaded.model.disable_adapter():
        of_base = answerer.answers(ids, sampling, keys=keys, batch_size=options.batch_size)
    return [list(both) for both in zip(of_model, of_base, strict=True)]


def _settings(trained: Trained, loaded: Loaded, options: Any) -> dict[str, Any]:
    """Return what decides answers besides prompts and sampling."""
    from orpo_lightning.using.trained import weights_mark

    return {
        "package": __version__,
        "rows": loaded.rows,
        "side_by_side": options.side_by_side,
        "weights": weights_mark(trained),
    }


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _tell(line: str) -> None:
    """Print to stderr: standard output may be the answers."""
    from orpo_lightning.masking import mask_text

    print(mask_text(line), file=sys.stderr, flush=True)
