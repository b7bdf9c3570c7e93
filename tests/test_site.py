"""The site of README.md and docs/: each page has a place, links lead somewhere, and readers need no
network.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import vlds
from tests.toys.browser import PROGRAM, visit
from tests.toys.files import ROOT, write

BUILDER = ROOT / "docs" / "site" / "make_site.py"
SEARCH = """(async () => {
    const until = async (find) => {
        for (let n = 0; n < 300; n++) {
            const found = find();
            if (found && found.length !== 0) return found;
            await new Promise(next => setTimeout(next, 100));
        }
        return [];
    };
    document.querySelector(".md-search__button").click();
    const roots = () => [...document.querySelectorAll("*")].map(e => e.shadowRoot).filter(r => r);
    const boxes = () => roots().flatMap(root => [...root.querySelectorAll("input")]);
    const [box] = await until(boxes);
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(box, "kronecker");
    box.dispatchEvent(new Event("input", { bubbles: true }));
    const links = () => [...box.getRootNode().querySelectorAll("a")].map(a => a.href);
    return until(() => links().filter(link => link.includes("methods.html")));
})()"""
"""Types a word into the search of a page, and waits for links to the page that has it."""


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    """The build follows every link, and runs the tutorial whose report it shows."""
    for name in ("zensical", "mkdocstrings_handlers.python"):
        pytest.importorskip(name, reason="the site needs pip install 'vlds[docs]'")
    build = [sys.executable, str(BUILDER), "--out", str(tmp_path)]
    built = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stdout[-5000:] + built.stderr[-5000:]
    html = tmp_path / "html"
    api = (html / "docs/site/api/python.html").read_text("utf-8")
    assert [name for name in vlds.__all__ if f'id="vlds.{name}"' not in api] == []
    assert "how many are there?" in (html / "docs/site/report.html").read_text("utf-8")
    if PROGRAM is None:
        pytest.skip("no Chromium: the rest looks at the pages with a browser")
    for page in ("index.html", "docs/site/api/method.html", "docs/site/report.html"):
        seen = visit((html / page).as_uri(), "document.documentElement.scrollWidth", width=390)
        assert seen.values[0] <= 390, f"{page} is wider than a phone"
        assert [link for link in seen.requested if not link.startswith("file:")] == []
        assert seen.logged == []
    assert visit((html / "docs/install.html").as_uri(), SEARCH).values[0] != []


def test_what_is_wrong_with_a_site_is_named(tmp_path: Path) -> None:
    builder = runpy.run_path(str(BUILDER))
    write(tmp_path / "there.html", '<h2 id="here">x</h2>')
    write(
        tmp_path / "index.html",
        '<script src="https://example.org/x.js"></script><a href="https://example.org">fine</a>'
        '<a href="there.html#here">fine</a><a href="there.html#gone">x</a>'
        '<a href="away.html">y</a>',
    )
    assert builder["check"](tmp_path) == [
        "index.html: no such place: there.html#gone",
        "index.html: no such page: away.html",
        "index.html: loads https://example.org/x.js",
    ]
    with pytest.raises(ValueError, match=r"README.md: no such file: docs/nothing.md"):
        builder["follow"](ROOT / "README.md", "[a page](docs/nothing.md#part)")
    with pytest.raises(ValueError, match=r"nav lacks .*docs/peers.md"):
        builder["copy_pages"](tmp_path, ["README.md"])


def test_each_page_has_a_place(tmp_path: Path) -> None:
    """Needs no library of the site, so that a new page without a place fails `make test`."""
    builder = runpy.run_path(str(BUILDER))
    text = (ROOT / "docs/site/zensical.toml").read_text("utf-8")
    builder["copy_pages"](tmp_path, builder["PAGE_NAME"].findall(text))
    assert (tmp_path / "tests/examples/counting.py.md").read_text("utf-8").startswith("# tests/")
