"""Hostile text files: mutated tokenizers, configs and templates, and random templates, all tried in one process.

`python -m support.text_fuzz files 1000` tries a thousand inputs, and ends with 1 at the first that is neither served
nor refused in one line. Each input comes from its number alone, so that `--first N` with one input tries it again.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from support.template_fuzz import random_template
from support.tokenizer_files import byte_level, hard_text, metaspace, sentencepiece

from sala_export.errors import SalaError, printable
from sala_export.files import TextFile
from sala_export.runtime import text
from sala_export.runtime.chat import ChatTemplate
from sala_export.runtime.text import Tokenizer

MOST_SECONDS = 5.0
"""Of the processor, for one input."""
MOST_GROWTH_BYTES = 256 << 20
_HANG_SECONDS = 120
_LONGEST_MESSAGE = 1000

_ODD_VALUES: tuple[object, ...] = (
    *(None, True, -1, 0, 7, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 10**400, -1.5, 1e308, float("nan")),
    *("", "text", " ", "a", "\x1b]0;title\x07", "\ud800", "\u202e", "<s>", "▁", "[" * 50, "(a+)+$", "x" * 5000),
    *([], {}, [[]], [None], [1, "a"], {"content": 1}, {"type": "Sequence"}, {"String": ""}, {"Regex": "("}),
)
_COMPONENTS: tuple[dict[str, Any], ...] = (
    *({"type": kind} for kind in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Whitespace", "BertPreTokenizer")),
    *(
        {"type": kind}
        for kind in ("Fuse", "ByteFallback", "ByteLevel", "UnicodeScripts", "WhitespaceSplit", "WordPiece")
    ),
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "xy"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa" * 50},
    {"type": "Prepend", "prepend": "\x00"},
    {"type": "Strip", "content": " ", "start": 1 << 40, "stop": 1 << 40},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Split", "pattern": {"Regex": "(?=a)"}, "behavior": "Isolated", "invert": True},
    {"type": "Punctuation", "behavior": "MergedWithNext"},
    {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always", "split": True},
    {"type": "CTC", "pad_token": "a", "word_delimiter_token": "", "cleanup": True},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {"type": "BertProcessing", "sep": ["a", 1 << 31], "cls": ["b", 7]},
    {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0], ["b", 0.0]], "byte_fallback": True},
    {"type": "WordLevel", "vocab": {"a": 1, "b": 1}, "unk_token": "c"},
    {
        "type": "WordPiece",
        "vocab": {"a": 5},
        "unk_token": "a",
        "continuing_subword_prefix": "",
        "max_input_chars_per_word": 0,
    },
)
_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{% if message.role == "tool" %}{{ raise_exception("no") }}{% endif %}
<|im_start|>{{ message['role'] }} {{ message['content'] | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"""


def _base_files(chance: random.Random) -> dict[str, Any]:
    spec = chance.choice([byte_level, sentencepiece, lambda: metaspace("first", split=True)])()
    return {
        "tokenizer.json": copy.deepcopy(spec),
        "tokenizer_config.json": {
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "<|im_end|>",
            "pad_token": None,
            "chat_template": [{"name": "default", "template": _TEMPLATE}, {"name": "tools", "template": "x"}],
        },
        "special_tokens_map.json": {"pad_token": {"content": "<pad>", "rstrip": True}, "extra_special_tokens": ["<x>"]},
        "added_tokens.json": {"<x>": 9, "the": 10},
        "generation_config.json": {"eos_token_id": [1, 7], "temperature": 0.8},
        "chat_template.jinja": _TEMPLATE,
    }


def _mutate(chance: random.Random, root: Any) -> Any:
    """Change one place of a JSON value, as likely near its root as deep in a vocabulary."""
    place, key = _place(chance, root)
    if place is None:
        return copy.deepcopy(chance.choice(_ODD_VALUES))
    match chance.randrange(6):
        case 0:
            del place[key]
        case 1:
            place[key] = copy.deepcopy(chance.choice(_COMPONENTS))
        case 2:
            place[key] = {"type": "Sequence"} | {
                name: [copy.deepcopy(chance.choice(_COMPONENTS)) for _ in range(chance.randrange(4))]
                for name in ("normalizers", "pretokenizers", "decoders", "processors")
            }
        case 3:
            other, other_key = _place(chance, root)
            place[key] = copy.deepcopy(root if other is None else other[other_key])
        case _:
            place[key] = copy.deepcopy(chance.choice(_ODD_VALUES))
    return root


def _place(chance: random.Random, root: Any) -> tuple[Any, Any]:
    """A random container in a value, and a key of it. (None, None) if the value holds nothing."""
    place, key = None, None
    while isinstance(root, dict | list) and root and (place is None or chance.random() < 0.75):
        place, key = root, chance.choice(list(root)) if isinstance(root, dict) else chance.randrange(len(root))
        root = root[key]
    return place, key


def _spoil(chance: random.Random, content: bytes) -> bytes:
    """Change bytes, whatever they mean."""
    at = chance.randrange(len(content) + 1)
    match chance.randrange(5):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
        case 2:
            return b"\xef\xbb\xbf" + content
        case 3:
            return content[:at] + b"[" * chance.choice([10, 200, 100_000]) + content[at:]
        case _:
            return content[:at] + chance.choice([b"NaN", b"1e999", b"\x00", b"\x1b[2J", b"1" * 5000]) + content[at:]


def hostile_files(chance: random.Random) -> dict[str, TextFile]:
    """The text files of a bundle, one or more of them changed."""
    files = _base_files(chance)
    if chance.random() < 0.3:
        decoder = {"9": {"content": "<x>", "lstrip": chance.random() < 0.2, "special": True}, "1": {"content": "the"}}
        files["tokenizer_config.json"]["added_tokens_decoder"] = decoder
    for _ in range(chance.choice([1, 1, 2, 4])):
        name = chance.choice([*files, "tokenizer.json"])
        files[name] = random_template(chance) if name.endswith("jinja") else _mutate(chance, files[name])
    contents = {
        name: (value if name.endswith("jinja") else json.dumps(value)).encode("utf-8", "replace")
        for name, value in files.items()
    }
    if chance.random() < 0.2:
        name = chance.choice(list(contents))
        contents[name] = _spoil(chance, contents[name])
    if chance.random() < 0.5:
        del contents["chat_template.jinja"]
    if chance.random() < 0.05:
        contents.pop(chance.choice(list(contents)))
    return {name: TextFile(Path("hostile", name), content) for name, content in contents.items()}


def _use_files(chance: random.Random) -> str:
    tokenizer = Tokenizer.from_files(hostile_files(chance))
    prompt = hard_text(chance, 20)
    encoder, decoder = tokenizer.stream_encoder(), tokenizer.stream_decoder()
    streamed = [token_id for piece in (prompt, prompt.encode()) for token_id in encoder.push(piece)] + encoder.finish()
    whole = tokenizer.encode(prompt + prompt)
    if tokenizer.streams and streamed != whole:
        raise AssertionError("the ids of a stream are not those of the whole")
    for token_id in whole:
        decoder.push(token_id)
    decoder.finish()
    tokenizer.decode(whole)
    mixed, literal = tokenizer.stream_encoder(), tokenizer.stream_encoder()
    for piece in ("<s>", prompt, "<x>", prompt):
        mixed.push(piece, literal=piece is prompt)
    mixed.finish()
    streamed = literal.push(prompt, literal=True) + literal.finish()
    if tokenizer.streams and streamed != tokenizer.encode(prompt, literal=True):
        raise AssertionError("the ids of a literal stream are not those of the whole")
    if tokenizer.chat is not None:
        for goes_on in (False, True):
            tokenizer.chat.turn(prompt, goes_on=goes_on)
            tokenizer.chat.around_prompt(goes_on=goes_on)
    return "served"


def _use_template(chance: random.Random) -> str:
    chat = ChatTemplate(random_template(chance), {"bos_token": "<s>"}, "hostile/chat_template.jinja")
    messages = [{"role": role, "content": hard_text(chance, 5)} for role in ("system", "user", "assistant", "user")]
    chat.render(messages, tools=[{"name": "f", "parameters": {"type": "object"}}])
    return "served"


def _try_one(kind: str, number: int) -> str:
    """`served`, `refused`, or what is wrong."""
    chance = random.Random(number)
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
    started = time.process_time()
    try:
        outcome = _use_files(chance) if kind == "files" else _use_template(chance)
    except SalaError as error:
        message = str(error)
        outcome = "refused"
        if printable(message) != message or not message or len(message) > _LONGEST_MESSAGE:
            outcome = f"refused in words that are no line: {message!r}"
    # Whatever else comes is what is looked for; panics of the library are no Exception.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = f"raised {error!r}"
    seconds = time.process_time() - started
    return outcome if seconds < MOST_SECONDS else f"took {seconds:.1f} s"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def main() -> int:
    """Try the inputs that the command line asks for. Returns 1 after the first that fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["files", "templates"])
    parser.add_argument("inputs", type=int)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("sala_export").addHandler(logging.NullHandler())
    # As many cuts of streams as there can be.
    text._BLOCK_CHARACTERS = 1
    outcomes: Counter[str] = Counter()
    warm = 0
    for number in range(options.first, options.first + options.inputs):
        outcome = _try_one(options.kind, number)
        outcomes[outcome] += 1
        if outcome not in ("served", "refused"):
            sys.stdout.write(f"input {number} {outcome}\n")
            return 1
        if number - options.first == options.inputs // 4:
            warm = _resident_bytes()
    faulthandler.cancel_dump_traceback_later()
    growth = _resident_bytes() - warm
    sys.stdout.write(f"{options.inputs} inputs: {dict(outcomes)}, {growth >> 20} MiB more memory\n")
    return 0 if growth < MOST_GROWTH_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
