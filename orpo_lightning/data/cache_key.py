"""The name of a cache: a hash of all that decides what tokens a source becomes."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpo_lightning.data import (
    anchors,
    arrow_reader,
    columns,
    compression,
    control_tokens,
    csv_reader,
    encoding,
    flags,
    json_reader,
    json_stream,
    left_out,
    limits,
    messages,
    readers,
    records,
    rendering,
    rows,
    scores,
    screening,
    scripts_of_text,
    shapes,
    template_calls,
    template_limit,
    token_rules,
    tokenization,
    values,
)
from orpo_lightning.versions import versions_of

if TYPE_CHECKING:
    from orpo_lightning.data.cache import Reading
    from orpo_lightning.data.sources import Rows

# Their source is a part of the name: after a rule changes, or a reader is mended, no old tokens are found.
_RULES = (
    compression,
    readers,
    csv_reader,
    json_reader,
    json_stream,
    arrow_reader,
    rows,
    columns,
    records,
    messages,
    scores,
    shapes,
    values,
    left_out,
    screening,
    flags,
    template_calls,
    template_limit,
    rendering,
    control_tokens,
    anchors,
    encoding,
    token_rules,
    limits,
    scripts_of_text,
    tokenization,
)
# Another version seldom makes other tokens, and nobody can tell when: tokenising again is cheap.
_PACKAGES = ("tokenizers", "transformers", "jinja2")


def cache_key(source: Rows, tokenizer: Any, reading: Reading) -> str:
    """Return the name of the cache of a source's rows, read that way, under that tokenizer."""
    code = [inspect.getsource(module) for module in _RULES]
    code += [path.read_text(encoding="utf-8") for path in sorted(Path(shapes.__file__).parent.glob("*.py"))]
    state, versions = _tokenizer_state(tokenizer), versions_of(_PACKAGES)
    parts = [source.source, source.fingerprint, state, reading._asdict(), code, versions]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).hexdigest()[:32]


def _tokenizer_state(tokenizer: Any) -> list[Any]:
    """Return everything that decides what a tokenizer and its template make of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Not decisions: what the last call asked for, and a call may lie between two runs' looks here.
        backend.no_truncation()
        backend.no_padding()
        state = backend.to_str()
    else:
        state = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.all_special_ids]
    added = [repr(item) for item in sorted(tokenizer.added_tokens_decoder.items())]
    return [type(tokenizer).__name__, state, ids, added, tokenizer.chat_template]
