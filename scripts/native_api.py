"""Writes docs/c_api.md from the headers of the runtime.

    python -m scripts.native_api

Every declaration of `runtime/include/sala.h` becomes a heading with its comment and its code, and every C++ header in
`runtime/include/sala/` a row with the comment at its top. `tests/docs/test_native_api.py` fails while page and headers
differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = Path("docs", "c_api.md")
_INCLUDE = Path("runtime", "include")
_SECTION = re.compile(r"^/\* -{3,} (.+?) -{3,} \*/$", re.MULTILINE)
_TOKEN = re.compile(
    r"(?P<comment>/\*.*?\*/)"
    r"|(?P<macro>#define SALA_(?!H$|API)\w.*?[^\\]$)"
    r"|(?P<declaration>^(?:typedef|enum|SALA_API)\b[^;{]*(?:\{[^}]*\}[^;]*)?;)",
    re.MULTILINE | re.DOTALL,
)
_NAME = re.compile(r"\b(?:sala_\w+|SALA_\w+(?:\.{3}\w*)?|NULL(?!\w))")

_PREAMBLE = """\
<!-- Written by `python -m scripts.native_api`. Edit the headers in runtime/include instead. -->
# C and C++ interface

If you write C, or a language that calls C, include [`sala.h`](../runtime/include/sala.h) and link `libsala.so`. For
example, this loads a bundle and reads one number of it:

```c
sala_model* model = NULL;
sala_error* error = sala_model_load("out.sala", NULL, &model);
if (error) {
  fprintf(stderr, "%s: %s\\n", sala_error_name(error), sala_error_message(error));
  sala_error_destroy(error);
  return 1;
}
printf("%lld tokens\\n", (long long)sala_model_vocab_size(model));
sala_model_destroy(model);
```

[`embedding.md`](embedding.md) builds the library and whole programs. If you write C++, the [headers](#c-headers) at the
end of this page are for you.
"""


class Item(NamedTuple):
    """One declaration with what belongs to it."""

    name: str
    comment: str
    code: list[str]


def page(root: Path) -> str:
    """The whole page as markdown."""
    header = (root / _INCLUDE / "sala.h").read_text(encoding="utf-8")
    before, *sections = _SECTION.split(header)
    contract, *versions = before.split("#ifndef SALA_H")
    parts = [_PREAMBLE, "## What holds for every function\n", _contract(contract)]
    for title, text in [("Versions", "".join(versions)), *zip(sections[::2], sections[1::2], strict=True)]:
        parts += [f"## {title}\n", *map(_item_text, _items(text))]
    return "\n".join([*parts, _cpp_headers(root)])


def _contract(text: str) -> str:
    """The comment at the top of the header, its first words in bold."""
    paragraphs = _prose(text).split("\n\n")[1:]
    return "\n\n".join(re.sub(r"^([\w ]+\.)", r"**\1**", paragraph) for paragraph in paragraphs) + "\n"


def _items(text: str) -> Iterator[Item]:
    """The declarations in order; a macro without a comment joins the declaration before it."""
    comment, waiting = "", None
    for token in _TOKEN.finditer(text):
        code = token.group(0)
        if token.lastgroup == "comment":
            comment = _prose(code)
            continue
        if token.lastgroup == "macro" and waiting and not comment:
            waiting.code.append(code)
            continue
        if waiting:
            yield waiting
        waiting, comment = Item(_name(code), comment, [code]), ""
    if waiting:
        yield waiting


def _prose(comment: str) -> str:
    """Text of a comment: paragraphs with an empty line between them, each on one line, names as code."""
    text = re.sub(r"^ ?\*+ ?", "", comment.strip().removeprefix("/*").removesuffix("*/"), flags=re.MULTILINE)
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(_NAME.sub(r"`\g<0>`", paragraph) for paragraph in paragraphs if paragraph)


def _name(code: str) -> str:
    """What a declaration declares. An enumeration without a name goes by the beginning of its first constant."""
    for pattern in (r"#define (\w+)", r"typedef struct (\w+)", r"\(\*(\w+)\)", r"(\w+)\("):
        if found := re.match(f".*?{pattern}", code):
            return found.group(1)
    constant = re.search(r"\b(SALA_[A-Z]+_)\w+ =", code)
    if constant is None:
        raise ValueError(f"no name in this declaration of sala.h: {code}")
    return f"{constant.group(1)}..."


def _item_text(item: Item) -> str:
    comment = f"{item.comment}\n\n" if item.comment else ""
    code = "\n".join(re.sub(r"^SALA_API ", "", one) for one in item.code)
    return f"### `{item.name}`\n\n{comment}```c\n{code}\n```\n"


def _cpp_headers(root: Path) -> str:
    rows = ["| header | what it is for |", "| --- | --- |"]
    for path in sorted((root / _INCLUDE / "sala").glob("*.h")):
        first = path.read_text(encoding="utf-8").partition("\n\n")[0]
        comment = " ".join(line.removeprefix("//").strip() for line in first.partition("//\n")[0].splitlines())
        rows.append(f"| [`sala/{path.name}`](../{path.relative_to(root).as_posix()}) | {comment} |")
    told = (
        "Link `libsala_runtime.a` (CMake target `Sala::runtime`). Most programs need `model.h` and `session.h` alone."
    )
    return f"## C++ headers\n\n{told}\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (ROOT / PAGE).write_text(page(ROOT), encoding="utf-8")
