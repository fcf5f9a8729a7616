"""How the page shows Markdown, beside markdown-it, and what hostile texts become."""

from __future__ import annotations

import random
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Page
from support.browser import faults_of, page_of_files, running_browser

_RENDER = """async ([texts, step]) => {
  const { Markdown } = await import("/page/markdown.js");
  return texts.map((text) => {
    const element = document.createElement("div");
    const shown = new Markdown(element);
    for (let end = step; step && end < text.length; end += step) shown.update(text.slice(0, end));
    shown.update(text);
    return element.innerHTML;
  });
}"""

_DOCUMENTS = [
    "# One\n\nText *a* and **b**, ***both***, `code`, ~~gone~~.\n\n## Two ##\n### Three",
    "Title\n=====\ntext\n\nSub\n---\ntext\n\n---\n***",
    "- a\n- b\n  - c\n    - d\n- e\n\ntext\n\n* other\n+ third",
    "1. a\n2. b\n\n   behind\n3. c\n\n7) seven\n8) eight",
    "- loose\n\n- list\n\n  two\n- end",
    "- a\ngoes on\n- ```\n  code\n\n  more\n  ```\n- > quote",
    "> a\n> **b**\n> > c\n>\n> - d\n> - e\n\ntext",
    "```python\nif a < b:\n    print('*x*')\n```\ntext\n~~~~\n```\n~~~~\n\n    indented\n\n    code",
    "```\nnever ends\n\n- a",
    "|a|b|c|\n|:-|-:|:-:|\n|1|2|3|\n|x \\| y|`z`|**w**|\ntext|d|e\n\nafter",
    "a | b\n--|--\n1 | 2",
    "snake_case_name and 2*3*4 and __init__ and a * b * c and **un*balanced and _x_.",
    "**bold *and em* more** *em **and bold** more* ***a** b* ***a* b**",
    "``a ` b`` and ` `` ` and `un",
    "\\*no\\* \\# \\\\ \\a &",
    "[text](https://a.example/x) [t *em*](<https://a.example/b c> \"title\") ![image](https://a.example/i.png)",
    "<https://a.example/?a=1&b=2> and more",
    "[no](javascript:alert(1)) [no]( data:text/html,x ) <javascript:alert(1)> <b>no</b>",
    "line one  \nline two\\\nline three\nline four",
    "中文**强调**文字，*斜体*。\n\nعربي **غامق**",
    "",
    "\n\n  \n",
]
_PARTS = ["*", "**", "_", "__", "~~", "`", "``", "a", "b c", " ", "  ", "(", ")", ".", "\n", "\\", "é", "1", "[", "]"]
_BLOCKS = ["# {}", "{}", "- {}\n- b", "1. {}\n2. b", "> {}", "```\n{}\n```", "a|b\n-|-\n{}|c", "***"]


def _made_up(seed: int) -> str:
    """A document of a few blocks, with marks in any order inside them."""
    chosen = random.Random(seed)
    lines = ["x" + "".join(chosen.choices(_PARTS[:14], k=chosen.randint(0, 12))) + "y" for _ in range(4)]
    return "\n\n".join(chosen.choice(_BLOCKS).format(line) for line in lines)


class _Shape(HTMLParser):
    """What a document says, without what the page adds to it: names of elements, texts, targets of links."""

    _UNSEEN = frozenset({"figcaption", "span", "figure", "div"})
    _SKIPPED = frozenset({"figcaption", "span"})

    def __init__(self, *, lowers_headings: bool) -> None:
        super().__init__()
        self.shape: list[str] = []
        self._lowers = lowers_headings
        self._skipping = 0
        self._is_code = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipping += tag in self._SKIPPED
        if self._skipping or tag in self._UNSEEN:
            return
        given = dict(attrs)
        self._is_code = self._is_code or tag == "pre"
        if tag == "br":
            self.handle_data("\n")
            return
        if tag == "img":  # the page names a picture, and does not load it
            self.shape += [f"<a {given['src']}>", given["alt"] or "", "</a>"]
            return
        about = given.get("href") or given.get("start") or ""
        if tag in ("td", "th"):
            about = given.get("class") or (given.get("style") or "text-align:left").partition(":")[2]
        self.shape.append(f"<{self._lowered(tag)} {about}>")
        if tag == "hr":
            self.shape.append("</hr>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._skipping and tag not in self._UNSEEN:
            self._is_code = self._is_code and tag != "pre"
            self.shape.append(f"</{self._lowered(tag)}>")
        self._skipping -= tag in self._SKIPPED

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if not self._is_code:
            data = " ".join(data.split("\n"))
            while "  " in data:
                data = data.replace("  ", " ")
        if self.shape and not self.shape[-1].startswith("<"):
            self.shape[-1] += data
        elif data.strip():
            self.shape.append(data)

    def _lowered(self, tag: str) -> str:
        tag = "del" if tag == "s" else tag
        is_heading = self._lowers and len(tag) == 2 and tag[0] == "h" and tag[1].isdecimal()
        return f"h{min(int(tag[1]) + 1, 6)}" if is_heading else tag


def _shape(html: str, *, lowers_headings: bool = False) -> list[str]:
    parser = _Shape(lowers_headings=lowers_headings)
    parser.feed(html)
    parser.close()
    stripped = [part if part.startswith("<") else part.strip() for part in parser.shape]
    return [part for part in stripped if part]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with running_browser() as browser, page_of_files(browser) as page:
        yield page


def _rendered(page: Page, texts: list[str], *, step: int = 0) -> list[str]:
    made: list[str] = page.evaluate(_RENDER, [texts, step])
    return made


def test_documents_are_as_those_of_markdown_it(page: Page) -> None:
    reference = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
    reference.options["html"] = False
    documents = [*_DOCUMENTS, *(_made_up(seed) for seed in range(300))]
    differ = []
    for text, html in zip(documents, _rendered(page, documents), strict=True):
        expected = _shape(reference.render(text), lowers_headings=True)
        if _shape(html) != expected:
            differ.append((text, _shape(html), expected))
    print(len(differ))
    for d in differ[:12]:
        print(*d, sep="\n", end="\n\n")
    assert not differ
