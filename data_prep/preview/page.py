"""A contact sheet as one HTML file: no script, no network, the pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from data_prep.preview.sample import TINY, SampleView, thumbnail
from vlds.runtime.shown import escape
from vlds.schema import Encoded

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
JPEG_QUALITY = 85
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1b1f24;
  --faint: #5b6470; --line: #dde1e6; --accent: #1a6e3c; --wrong: #a8321f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1c2127; --ink: #e6e9ed;
  --faint: #9aa5b1; --line: #343b44; --accent: #7fd6a0; --wrong: #ff9d8a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 84rem; background: var(--ground);
  color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
.faint { color: var(--faint); font-size: .85rem; margin: .1rem 0 0; overflow-wrap: anywhere; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
  gap: 1rem; margin-top: 1.25rem; align-items: start; }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .4rem; align-items: flex-start; margin-bottom: .5rem; }
.pictures img { flex: 1 1 0; min-width: 0; width: 100%; height: auto; max-height: 20rem;
  object-fit: contain; border-radius: 4px; }
.pictures img.tiny { image-rendering: pixelated; max-height: 14rem; }
.instead { flex: 1 1 0; padding: 2rem .5rem; text-align: center; color: var(--faint);
  border: 1px dashed var(--line); border-radius: 4px; }
h2 { font-size: .95rem; margin: 0; }
ul { list-style: none; margin: .5rem 0 0; padding: 0; font-size: .92rem; }
li { padding: .3rem 0; border-top: 1px solid var(--line); }
b { display: block; color: var(--accent); font-weight: 600; }
.wrong { color: var(--wrong); }
@media (max-width: 32rem) { body { padding: 1rem .75rem 2rem; } }
@media print { figure { break-inside: avoid; } }
"""


def page_bytes(title: str, counts: str, views: Sequence[SampleView]) -> bytes:
    """The page about some samples."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="faint">{escape(counts)}</p>'
        f'<div class="sheet">{"".join(map(_figure, views))}</div></body></html>\n'
    )
    return page.encode()


def _figure(view: SampleView) -> str:
    """Pictures, then what is said about them."""
    if view.trouble:
        text = f'<p class="wrong">cannot be read: {escape(view.trouble)}</p>'
        return f'<figure><p class="faint">{escape(view.place)}</p>{text}</figure>'
    pictures = "".join(_picture(data, view.id) for data in view.pictures)
    pictures += "".join(f'<div class="instead">features {shape}</div>' for shape in view.features)
    said = "".join(
        f"<li>{escape(text)}{f'<b>{escape(answer)}</b>' if answer else ''}</li>"
        for text, answer in view.said
    )
    if view.num_left_out:
        said += f'<li class="faint">and {view.num_left_out} more</li>'
    return (
        f'<figure><div class="pictures">{pictures}</div><figcaption><h2>{escape(view.id)}</h2>'
        f'<p class="faint">{escape(view.facts)}<br>{escape(view.place)}</p>'
        f"<ul>{said}</ul></figcaption></figure>"
    )


def _picture(data: Encoded, name: str) -> str:
    image = thumbnail(data)
    if image is None:
        return '<div class="instead wrong">cannot be decoded</div>'
    tiny = max(image.size) < TINY
    form = "PNG" if tiny else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, form, quality=JPEG_QUALITY)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="tiny"' if tiny else ""
    return (
        f'<img{kind} width="{image.width}" height="{image.height}" '
        f'alt="picture of {escape(name)}" src="data:image/{form.lower()};base64,{encoded}">'
    )
