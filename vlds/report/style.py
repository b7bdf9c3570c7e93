"""The page's style sheet: light and dark, from phones to desks."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1b1f24;
  --faint: #5b6470; --line: #dde1e6; --accent: #1f5fbf; --bar: #c3d6f2;
  --right: #1a6e3c; --wrong: #a8321f; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1c2127; --ink: #e6e9ed;
  --faint: #9aa5b1; --line: #343b44; --accent: #82b1ff; --bar: #2f4a75;
  --right: #7fd6a0; --wrong: #ff9d8a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 72rem; background: var(--ground);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .25rem; padding-top: 1rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
h4 { font-size: .95rem; margin: 1.25rem 0 .5rem; color: var(--faint); }
p { margin: .25rem 0; max-width: 70ch; }
.faint { color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
th.number, td.number { text-align: right; min-width: 4.5rem; }
td.best { font-weight: 700; text-decoration: underline; text-underline-offset: 3px; }
.bar { display: block; height: 4px; margin-top: 3px; background: var(--bar); border-radius: 2px; }
.best .bar { background: var(--accent); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  gap: 1rem; }
.chart { margin: 0; padding: .6rem .6rem .3rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
.chart figcaption { font-size: .9rem; color: var(--faint); overflow-wrap: anywhere; }
.chart figcaption b { color: var(--ink); }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--faint); font-size: 11px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.chart circle { fill: var(--accent); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13.5rem), 1fr));
  gap: 1rem; }
.sample { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; font-size: .92rem; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .4rem; align-items: flex-start; }
.pictures img { flex: 1 1 0; min-width: 0; width: 100%; height: auto; max-height: 16rem;
  object-fit: contain;
  border-radius: 4px; }
.pictures img.tiny { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .6rem; margin: .5rem 0 0; }
dt { color: var(--faint); }
dd { margin: 0; }
.mark { font-weight: 700; white-space: nowrap; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: .75rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; font-size: .8rem; line-height: 1.4; }
small { display: block; font-weight: 400; font-size: .8rem; line-height: 1.3; color: var(--faint); }
@media (max-width: 32rem) {
  body { padding: 1rem .75rem 2rem; font-size: 15px; }
  th, td { padding-right: .5rem; }
  th.number, td.number { min-width: 3.4rem; padding-right: .35rem; }
  table { font-size: .88rem; }
  .gallery { grid-template-columns: repeat(2, 1fr); gap: .6rem; }
  .sample { padding: .45rem; font-size: .85rem; }
  .sample dl { grid-template-columns: 1fr; }
  .sample dt { font-size: .75rem; margin-top: .2rem; }
}
@media print { details { display: none; } .sample, .chart { break-inside: avoid; } }
"""
