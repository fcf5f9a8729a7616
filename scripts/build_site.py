"""Builds the documentation site in build/site/html from the Markdown files of this checkout.

    pip install -e '.[docs]'
    python -m scripts.build_site
    python -m http.server --directory build/site/html

The build is strict: a broken link, a missing anchor or an unknown name on an API page ends it with exit code 1.

The pages keep their places in the tree, so a relative link means the same in the site as on a forge. A linked source
file becomes a page that shows it, and a linked folder its README or a page that lists it. `zensical.toml` has the
order of the pages and the look.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SITE = Path("build", "site")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
_LANGUAGES = {".cc": "cpp", ".h": "cpp", ".py": "python", ".sh": "bash", ".toml": "toml"}
_HIDDEN_FROM_SEARCH = "---\nsearch:\n  exclude: true\n---\n"


def write_pages(root: Path, pages: Path) -> None:
    """Write every page of the site below `pages`: the README, docs/, and everything that they link to."""
    waiting = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if path.suffix == ".md":
            text, linked = _with_site_links(path, root)
        else:
            text, linked = (_listing(path, root) if path.is_dir() else _source(path, root)), []
        page = _page_of(pages / path.relative_to(root), path)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
        waiting += [one for one in linked if one not in seen]
        seen.update(linked)


def _with_site_links(path: Path, root: Path) -> tuple[str, list[Path]]:
    """The text of a page with links to pages of the site, and what in the checkout it links to."""
    linked: list[Path] = []

    def rewritten(match: re.Match[str]) -> str:
        target, fragment = match.groups()
        found = (path.parent / target).resolve()
        if ":" in target or not found.is_relative_to(root) or not found.exists():
            return match.group(0)
        if found.is_dir() and (found / "README.md").exists():
            found /= "README.md"
        linked.append(found)
        return f"{os.path.relpath(_page_of(found, found), path.parent)}{fragment}"

    parts = _CODE.split(path.read_text(encoding="utf-8"))
    parts[::2] = [_TARGET.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts), linked


def _page_of(place: Path, original: Path) -> Path:
    """Where the page of a file or folder of the checkout goes, `place` being its own place."""
    if original.is_dir():
        return place / "index.md"
    return place if original.suffix == ".md" else place.with_name(f"{original.name}.md")


def _source(path: Path, root: Path) -> str:
    language = _LANGUAGES.get(path.suffix, "text")
    code = path.read_text(encoding="utf-8").rstrip()
    return f"{_HIDDEN_FROM_SEARCH}# `{path.relative_to(root)}`\n\n~~~~~~{language}\n{code}\n~~~~~~\n"


def _listing(folder: Path, root: Path) -> str:
    names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in folder.iterdir() if one.name[0] not in "._")
    lines = "\n".join(f"* `{name}`" for name in names)
    return f"{_HIDDEN_FROM_SEARCH}# `{folder.relative_to(root)}/`\n\n{lines}\n"


def build(root: Path) -> int:
    """Build the site of a checkout. Returns the exit code of the generator: 0, or 1 if it found anything wrong."""
    site = root / _SITE
    if site.exists():
        shutil.rmtree(site)
    write_pages(root, site / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(build(ROOT))
