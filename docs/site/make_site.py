"""Builds README.md, docs/ and what they link to as a site that needs no network: `make site`.

The pages keep their paths, so that the links of the repository are those of the site. A linked
file that is no page, such as a module, becomes a page that shows it.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".sh": "bash"}
PAGE_NAME = re.compile(r'= "([\w/.]+\.md)"')
SHIM, SHIM_ELSEWHERE = Path("docs/site/iframe-worker.js"), "https://unpkg.com/iframe-worker/shim"
COPIED = {".md", ".css", ".js", ".svg", ".png"}
"""Suffixes of files that are taken as they are."""
EXAMPLE = "docs/tutorials/own_data.md"
"""The tutorial whose run and report are the site's example."""
LEAVES = ("runs/shapes/report.html", "docs/site/report.html")
"""What the tutorial leaves, and where the site has it."""


def main() -> int:
    """Build the site and print what is wrong with it; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/site"), help="folder (%(default)s)")
    parser.add_argument(
        "--report", type=Path, help="report to show as the example; default: run its tutorial"
    )
    options = parser.parse_args()
    if missing := [name for name in ("zensical", "mkdocstrings") if find_spec(name) is None]:
        parser.error(f"{missing[0]} is not installed; pip install 'vlds[docs]', or `make site`")
    out = options.out.resolve()
    report = options.report or run_tutorial(out / "example")
    pages = out / "pages"
    for folder in (pages, out / "html"):
        shutil.rmtree(folder, ignore_errors=True)
    config = (ROOT / "docs/site/zensical.toml").read_text("utf-8")
    copy_pages(pages, PAGE_NAME.findall(config))
    shutil.copy(report, pages / LEAVES[1])
    out.joinpath("zensical.toml").write_text(config.replace("{root}", str(ROOT)), encoding="utf-8")
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if (code := subprocess.run(build, cwd=out).returncode) != 0:
        return code
    keep_at_home(out / "html")
    problems = check(out / "html")
    print(*problems, sep="\n", file=sys.stderr)
    print(f"{out / 'html' / 'index.html'}: {len(problems)} broken links")
    return 1 if problems else 0


def copy_pages(pages: Path, named: list[str]) -> None:
    """Copy the pages that the navigation names, and all that they link to, directly or not.

    Errors: ValueError for a page of docs/ without a place there, and for a link that leads nowhere.
    """
    first = [ROOT / name for name in named]
    if left_out := {*(ROOT / "docs").rglob("*.md")} - {*first}:
        names = ", ".join(sorted(str(file.relative_to(ROOT)) for file in left_out))
        raise ValueError(f"docs/site/zensical.toml: nav lacks {names}; give each a place")
    waiting = [*first, *(ROOT / "docs/site" / name for name in ("site.css", SHIM.name))]
    done = set()
    while waiting:
        file = waiting.pop()
        if file in done:
            continue
        done.add(file)
        text = file.read_text("utf-8")
        target = pages / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            text, linked = follow(file, text)
            waiting += linked
        elif file.suffix not in COPIED:
            target, text = target.with_name(f"{file.name}.md"), shown(file, text)
        target.write_text(text, encoding="utf-8")


def follow(page: Path, text: str) -> tuple[str, list[Path]]:
    """A page whose links lead to pages, and the files that it links to."""
    linked: list[Path] = []

    def lead(match: re.Match[str]) -> str:
        file = (page.parent / match[2]).resolve()
        if file == (ROOT / LEAVES[1]).resolve():
            return match[0]
        if not file.is_file():
            raise ValueError(f"{page.relative_to(ROOT)}: no such file: {match[2]}")
        linked.append(file)
        return match[1] + match[2] + ("" if file.suffix in COPIED else ".md") + match[3]

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(lead, part) for part in parts[::2]]
    return "".join(parts), linked


def shown(file: Path, text: str) -> str:
    """A page that shows a file; of a notebook, its cells."""
    if file.suffix != ".ipynb":
        language = LANGUAGES.get(file.suffix, "text")
        return f"# {file.relative_to(ROOT)}\n\n````{language}\n{text.rstrip()}\n````\n"
    cells = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        cells.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(cells) + "\n"


def keep_at_home(html: Path) -> None:
    """Load the search's helper from the site; zensical names another server for it."""
    for file in html.rglob("*.html"):
        up = "../" * (len(file.relative_to(html).parts) - 1)
        text = file.read_text("utf-8").replace(SHIM_ELSEWHERE, f"{up}{SHIM}")
        file.write_text(text, encoding="utf-8")


def run_tutorial(folder: Path) -> Path:
    """Run a tutorial's programs and commands in their order, unless it has run; the report."""
    report = folder / LEAVES[0]
    page = (ROOT / EXAMPLE).read_text("utf-8")
    ran = folder / "ran.md"
    if report.is_file() and ran.is_file() and ran.read_text("utf-8") == page:
        return report
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for language, text in re.findall(
        r"^```(python|sh)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    ):
        programs = [["-c", text]] if language == "python" else commands(text)
        for words in programs:
            print(shlex.join(words)[:100], flush=True)
            subprocess.run([sys.executable, *words], cwd=folder, check=True)
    ran.write_text(page, encoding="utf-8")
    return report


def commands(block: str) -> list[list[str]]:
    """The lines `vlds ...` of a block, as arguments of Python."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [["-m", *line] for line in words if line[:1] == ["vlds"]]


class Links(HTMLParser):
    """What a page is called by, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        link = given.get("href") or given.get("src")
        if link is not None and given.get("rel") not in ("canonical", "prev", "next"):
            (self.links if tag == "a" else self.loaded).append(link)


def check(html: Path) -> list[str]:
    """Broken links of a site, anchors included, and what its pages would load from elsewhere."""
    pages = {file: Links(file.read_text("utf-8")) for file in sorted(html.rglob("*.html"))}
    return [
        f"{file.relative_to(html)}: {problem}"
        for file, page in pages.items()
        for problem in broken(html, file, page, pages)
    ]


def broken(html: Path, file: Path, page: Links, pages: dict[Path, Links]) -> Iterator[str]:
    """What is wrong with a page's links."""
    for link in [*page.links, *page.loaded]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if link in page.loaded and parts.scheme != "data":
                yield f"loads {link}"
            continue
        target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
        if parts.path.startswith("/"):
            target = html / unquote(parts.path).lstrip("/")
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            yield f"no such page: {link}"
        elif target in pages and unquote(parts.fragment) not in pages[target].names:
            yield f"no such place: {link}"


if __name__ == "__main__":
    raise SystemExit(main())
