"""The documents of the checkout, and what they say exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PATTERNS = (
    "*.md",
    "docs/**/*.md",
    "docker/**/*.md",
    "engines/*.md",
    "plugins/**/*.md",
    "runtime/**/*.md",
    "sala_export/**/*.md",
    "tests/**/*.md",
)
_BUILT_FOLDERS = {"build", "dist", "generated", "__pycache__"}

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_FILE_SUFFIXES = (".c", ".cc", ".cmake", ".h", ".md", ".py", ".pyi", ".sh", ".toml", ".txt")

KNOWN_HOSTS = {"keepachangelog.com", "semver.org"}
"""Hosts that documents may name. A registry's is never among them: whoever builds may use another."""

_HOST = re.compile(r"\b(?:[a-z0-9-]+\.)+(?:com|dev|io|net|org)\b", re.IGNORECASE)
_MACHINE_PATH = re.compile(r"(?<![\w.*>-])/(?:home|mnt|root|tmp|Users|work)(?:/|\b)")

ELSEWHERE = {
    *("operator_tables.cc", "naive.py", "unpack.sh", "gpu-pack/unpack.sh"),
    *("build.sh", "prefill.sh", "decode.sh"),
}
"""Files that documents may name though the checkout lacks them: the build or a script writes them, or one is another
project's.
"""


def documents() -> list[Path]:
    """Every document, sorted."""
    found = {path for pattern in _PATTERNS for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not _BUILT_FOLDERS & set(path.relative_to(ROOT).parts))


def forbidden_names(text: str) -> list[str]:
    """Hosts that are not known, and absolute paths of one machine."""
    hosts = [host for host in _HOST.findall(text) if host.lower() not in KNOWN_HOSTS]
    return hosts + _MACHINE_PATH.findall(text)


@dataclass(frozen=True, slots=True)
class Document:
    """One Markdown file."""

    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def links(self) -> list[str]:
        """Targets of all links outside of code."""
        return _LINK.findall(_CODE.sub("", _FENCE.sub("", self.text)))

    def anchors(self) -> set[str]:
        """Fragments that links may name, as forges make them of headings."""
        headings = _HEADING.findall(_FENCE.sub("", self.text))
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    def mentioned_paths(self) -> Iterator[str]:
        """Words in code that claim to be a file or folder of the checkout.

        That is a word whose first part is at the top of the checkout, and a word that ends like a source file: bundles
        and checkpoints have paths too, but hold no sources. A lone name needs a source suffix, and not `.toml`, `.txt`
        or `.md`, which documents use for files of their reader.
        """
        code = "\n".join(_CODE.findall(_FENCE.sub("", self.text)) + _FENCE.findall(self.text))
        for raw in re.split(r"[\s,;()]+(?![^{]*\})", code):
            word = raw.rstrip(".:").removeprefix("./")
            if not re.fullmatch(r"[\w.{},*<>/+-]+", word) or word.startswith(("-", "/")):
                continue
            first, _, rest = word.partition("/")
            is_source = word.endswith(_FILE_SUFFIXES) or re.search(r"\.\{[a-z,]+\}$", word) is not None
            if rest:
                if is_source or first in _tree():
                    yield word
            elif is_source and not word.endswith((".toml", ".txt", ".md")):
                yield word

    def exists(self, word: str) -> bool:
        """Whether a mentioned path is there: from the root, from this document, or as the end of some file's path.

        `{a,b}` stands for each, `<x>`, `NAME` and `*` for anything.
        """
        if word in ELSEWHERE:
            return True
        return all(self._exists(re.sub(r"<[^>]*>|NAME", "*", each)) for each in _expanded(word))

    def _exists(self, pattern: str) -> bool:
        pattern = pattern.rstrip("/")
        if any(path.exists() for base in (ROOT, self.path.parent) for path in base.glob(pattern)):
            return True
        ending = re.compile(r"(?:.*/)?" + re.escape(pattern).replace(r"\*", "[^/]*"))
        return any(ending.fullmatch(path) for path in _tree())


def _expanded(word: str) -> list[str]:
    choices = [group.split(",") for group in _BRACES.findall(word)]
    template = _BRACES.sub("{}", word)
    return [template.format(*choice) for choice in product(*choices)]


@cache
def _tree() -> frozenset[str]:
    """Files and folders of the checkout, relative to it, without what tools left there."""
    found = set()
    for top in ROOT.iterdir():
        if top.name.startswith(".") or top.name in _BUILT_FOLDERS:
            continue
        paths = [top, *top.rglob("*")] if top.is_dir() else [top]
        for path in paths:
            relative = path.relative_to(ROOT)
            if not _BUILT_FOLDERS & set(relative.parts):
                found.add(relative.as_posix())
    return frozenset(found)
