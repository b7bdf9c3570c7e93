"""The page of `vlds predict --serve` in a real browser."""

from __future__ import annotations

import base64

import pytest

from tests.toys.browser import PROGRAM, visit
from tests.toys.world import picture
from vlds.evaluation.serve import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on PATH"),
]
WIDTH = "document.scrollingElement.scrollWidth"
HOSTILE = "<img src=x onerror=alert(1)>"


def ask(data: bytes, question: str) -> str:
    """An expression that pastes a picture, asks, and waits for the answer or the error."""
    encoded = base64.b64encode(data).decode()
    return f"""(async () => {{
      const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
      const files = new DataTransfer();
      files.items.add(new File([bytes], "red.jpg", {{ type: "image/jpeg" }}));
      const pasted = new ClipboardEvent("paste", {{ clipboardData: files, bubbles: true }});
      document.getElementById("chosen").dispatchEvent(pasted);
      document.getElementById("question").value = {question!r};
      document.getElementById("ask").requestSubmit();
      const state = document.getElementById("state");
      for (let n = 0; n < 300; n += 1) {{
        await new Promise((done) => setTimeout(done, 100));
        if (state.textContent !== "Asking ...") break;
      }}
      const answers = [...document.querySelectorAll("#answers li")].map((li) => li.textContent);
      return [state.textContent, answers];
    }})()"""


HIDDEN = """[...document.getElementById("task").options].map((option) => {
  const task = document.getElementById("task");
  task.value = option.value;
  task.dispatchEvent(new Event("change"));
  return [option.value, document.getElementById("asked").hidden];
})"""
CHOSEN = "document.querySelectorAll('#chosen img').length"


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_it_is_asked_on_its_page(server: Server, width: int, dark: bool) -> None:
    address = f"http://127.0.0.1:{server.server_port}/"
    made = "document.querySelectorAll('img[onerror]').length"
    drawn = "[...document.images].filter(image => image.naturalWidth === 16).length"
    seen = visit(
        address, ask(picture("red", 1), HOSTILE), made, drawn, WIDTH, CHOSEN,
        ask(b"GIF89a", "what?"), HIDDEN, width=width, dark=dark,
    )  # fmt: skip
    (state, (answer,)), *numbers, (complaint, answers), hidden = seen.values
    assert state == ""
    assert HOSTILE in answer
    assert "% sure" in answer
    assert numbers == [0, 2, width, 1]
    assert dict(hidden) == {"vqa": False, "caption": True}
    assert "truncated or damaged" in complaint
    assert answers == [answer]
    fetched = [url for url in seen.requested if not url.startswith("blob:")]
    assert set(fetched) <= {address, f"{address}answer", f"{address}favicon.ico"}
