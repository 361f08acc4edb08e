"""One side of the data benchmark, in a process of its own: `benchmark_sides.py JOB.json RESULT.json`.

Loading the tokenizer is timed apart from every side. Tokens are compared afterwards, outside of any clock.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from benchmark_process import Meter, do_job, memory
from benchmark_rows import numbered, read_pairs

_CHUNK = 512
_BATCHES = 50
_BATCH_SIZE = 8


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare the rows with the real data module, into an empty cache."""
    module, settings, found = _data_module(job)
    base = memory()
    data = module(train=job["rows"], **settings)
    tokenizer, found["tokenizer_seconds"] = _timed(lambda: data.processor)
    with Meter(base) as meter:
        data.prepare_data()
        data.setup("fit")
    table = data.train_dataset
    dropped = _left_out(data)
    pairs = (table[index] for index in range(len(table)))
    tokens = _save_digests(job, pairs, tokenizer)
    return found | meter.figures() | {"pairs": len(table), "tokens": tokens, "dropped": dropped}


def warm(job: dict[str, Any]) -> dict[str, Any]:
    """Start a second time: the cache is there."""
    module, settings, found = _data_module(job)
    with Meter(memory()) as meter:
        data = module(train=job["rows"], **settings)
        data.prepare_data()
        data.setup("fit")
        next(iter(data.train_dataloader()))
    with_imports = round(time.monotonic() - job["started"], 3)
    return found | meter.figures() | {"with_imports_seconds": with_imports}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Build TRL's trainer; the clock runs in the `map` calls with which it prepares its training pairs."""
    start = time.perf_counter()
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    found = {"imports_seconds": round(time.perf_counter() - start, 3)}
    base = memory()
    datasets.disable_caching()
    load = AutoTokenizer.from_pretrained
    tokenizer, found["tokenizer_seconds"] = _timed(lambda: load(job["tokenizer"]))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes))
    rows, found["load_seconds"] = _timed(
        lambda: datasets.load_dataset("json", data_files=job["rows"], split="train")
    )
    settings = {"report_to": [], "use_cpu": True, "bf16": False, "dataset_num_proc": job.get("processes")}
    config = ORPOConfig(output_dir=job["scratch"], max_length=job["max_length"], **settings)
    meter, real_map = Meter(base), datasets.Dataset.map

    def timed_map(*args: Any, **kwargs: Any) -> Any:
        with meter:
            return real_map(*args, **kwargs)

    datasets.Dataset.map = timed_map
    try:
        trainer, found["trainer_seconds"] = _timed(
            lambda: ORPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)
        )
    finally:
        datasets.Dataset.map = real_map
    prepared = trainer.train_dataset
    tokens = _save_digests(job, _pairs_of_trl(prepared), tokenizer)
    return found | meter.figures() | {"pairs": len(prepared), "tokens": tokens}


def encode(job: dict[str, Any]) -> dict[str, Any]:
    """Encode all prompts and all answers, rendered before, with the tokenizer alone: the floor."""
    from transformers import AutoTokenizer

    base = memory()
    load = AutoTokenizer.from_pretrained
    tokenizer, tokenizer_seconds = _timed(lambda: load(job["tokenizer"]))
    with Path(job["rows"]).open(encoding="utf-8") as file:
        texts = [_render(json.loads(line), tokenizer) for line in file]
    backend, meter = tokenizer.backend_tokenizer, Meter(base)
    backend.no_padding()
    backend.no_truncation()

    def ids(strings: Iterable[str]) -> Iterator[list[int]]:
        strings = iter(strings)
        while chunk := list(islice(strings, _CHUNK)):
            with meter:
                encoded = backend.encode_batch_fast(chunk, add_special_tokens=False)
            yield from (encoding.ids for encoding in encoded)

    prompts = list(ids(prompt for prompt, _, _ in texts))
    answers = list(ids(answer for _, *both in texts for answer in both))
    pairs = _within_limits(prompts, answers, tokenizer, job["max_length"])
    tokens = _save_digests(job, pairs, tokenizer)
    figures = meter.figures()  # without memory: all texts are held here, as no side needs to
    return {key: value for key, value in figures.items() if "seconds" in key} | {
        "tokenizer_seconds": tokenizer_seconds,
        "pairs": len(texts),
        "tokens": tokens,
    }


def stream(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare more rows than are to be held in memory, then take some batches of them."""
    module, settings, found = _data_module(job)
    base = memory()
    pairs, counted = read_pairs(Path(job["pairs"])), {"rows": 0, "passes": 0}

    class GeneratedPairs(module):  # type: ignore[valid-type, misc]
        """Rows that exist nowhere until they are asked for."""

        def load_rows(self, split: str) -> Iterator[dict[str, Any]]:
            """Yield so many gigabytes of training rows, and none of another split."""
            if split == "train":
                counted["passes"] += 1
                for counted["rows"], row in enumerate(numbered(pairs, max_bytes=job["bytes"]), start=1):
                    yield row

    file = job["rows"]
    data = GeneratedPairs(**settings) if file is None else module(train=file, **settings)
    _, found["tokenizer_seconds"] = _timed(lambda: data.processor)
    found["tokenizer_mb"] = round((memory().total - base.total) / 1e6, 1)
    phases = {}
    with Meter(base) as meter:
        data.prepare_data()
    phases["prepare"] = meter.figures()
    with Meter(base) as meter:
        data.setup("fit")
        batches = iter(data.train_dataloader())
        next(batches)
    phases["first batch"] = meter.figures()
    with Meter(base) as meter:
        taken = 1 + sum(1 for _ in islice(batches, _BATCHES - 1))
    phases["batches"] = meter.figures()
    cache = sum(file.stat().st_size for file in Path(job["cache"]).rglob("*") if file.is_file())
    table = data.train_dataset
    dropped = _left_out(data)
    rows = len(table) + sum(dropped.values())
    if file is None:
        found["passes_over_rows"] = counted["passes"]
        assert counted["rows"] == rows, f"{counted['rows']} rows were given, {rows} accounted for"
    found |= {"rows": rows, "pairs": len(table), "dropped": dropped, "batches": taken}
    return found | {"cache_bytes": cache, "phases": phases}


def _data_module(job: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Import the libraries; return the data module's class, its settings, and how long the import took."""
    start = time.perf_counter()
    import torch  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    from orpo_lightning import PreferenceDataModule

    settings = {"tokenizer": job["tokenizer"], "max_length": job["max_length"], "cache_dir": job["cache"]}
    settings |= {"overlong": "truncate", "batch_size": _BATCH_SIZE}
    return PreferenceDataModule, settings, {"imports_seconds": round(time.perf_counter() - start, 3)}


def _left_out(data: Any) -> dict[str, int]:
    """Return how many training rows were left out, by reason."""
    return {reason: rows for reason, (rows, _) in data.report()["train"].dropped.items()}


def _timed(what: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    value = what()
    return value, round(time.perf_counter() - start, 3)


def _render(row: dict[str, Any], tokenizer: Any) -> tuple[str, str, str]:
    """Return prompt and what each answer adds to it."""
    if isinstance(row["prompt"], str):
        return row["prompt"], row["chosen"], row["rejected"]
    render = tokenizer.apply_chat_template
    prompt = render(row["prompt"], tokenize=False, add_generation_prompt=True)
    whole = (render(row["prompt"] + row[side], tokenize=False) for side in ("chosen", "rejected"))
    chosen, rejected = (text.removeprefix(prompt) for text in whole)
    return prompt, chosen, rejected


def _within_limits(
    prompts: list[list[int]], answers: list[list[int]], tokenizer: Any, max_length: int
) -> Iterator[list[list[int]]]:
    """Yield the floor's tokens as pairs with a stop token and within the limit."""
    end = _stop_cutter(tokenizer)
    for number, prompt in enumerate(prompts):
        room = max(0, max_length - len(prompt))
        both = answers[2 * number : 2 * number + 2]
        stopped = (end(answer) or [*answer, tokenizer.eos_token_id] for answer in both)
        yield [prompt, *(answer[:room] for answer in stopped)]


def _pairs_of_trl(prepared: Any) -> Iterator[list[list[int]]]:
    """Yield prompt, chosen and rejected answer; TRL masks the prompt in its labels."""
    answers = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("input_ids", "labels")]
    columns = ["prompt_input_ids", *answers]
    for batch in prepared.select_columns(columns).iter(batch_size=_CHUNK):
        for prompt, *sides in zip(*(batch[column] for column in columns), strict=True):
            both = (sides[:2], sides[2:])
            yield [prompt, *(ids[sum(label == -100 for label in labels) :] for ids, labels in both)]


def _stop_cutter(tokenizer: Any) -> Callable[[list[int]], list[int] | None]:
    """Return a function: the answer cut behind its first special token, None where it has none."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)

    def cut(answer: list[int]) -> list[int] | None:
        stops = (position for position, token in enumerate(answer, start=1) if token in special)
        end = next(stops, None)
        return None if end is None else answer[:end]

    return cut


def _save_digests(job: dict[str, Any], pairs: Iterable[Any], tokenizer: Any) -> int:
    """Write three hashes of every pair and return how many tokens the pairs have.

    The hashes: as it is; with the answers cut behind their first stop token; without a leading BOS besides.
    """
    import numpy as np

    cut, bos = _stop_cutter(tokenizer), tokenizer.bos_token_id
    found, tokens = [], 0
    for pair in pairs:
        prompt, *answers = pair[:3]
        tokens += len(prompt) + sum(map(len, answers))
        stopped = [cut(answer) or answer for answer in answers]
        bare = prompt[1:] if bos is not None and prompt[:1] == [bos] else prompt
        found.append([_hash(prompt, *answers), _hash(prompt, *stopped), _hash(bare, *stopped)])
    np.save(job["digests"], np.array(found, dtype=np.uint64))
    return tokens


def _hash(*parts: list[int]) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + array("i", part).tobytes())
    return int.from_bytes(digest.digest(), "little")


SIDES = {"ours": ours, "warm": warm, "trl": trl, "trl2": trl, "encode": encode, "stream": stream}


if __name__ == "__main__":
    do_job(SIDES)
