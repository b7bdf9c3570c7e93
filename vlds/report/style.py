"""The page's style sheet: light and dark, from phones to desks."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #ffffff; --ink: #1b1f24;
  --faint: #5b6470; --line: #dde1e6; --accent: #1f5fbf; --bar: #c3d6f2;
  --right: #1a6e3c; --wrong: #a8321f; --c0: #1f5fbf; --c1: #c2510c; --c2: #1a7f4b;
  --c3: #a3268a; --c4: #7a5a1e; --c5: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1c2127; --ink: #e6e9ed;
  --faint: #9aa5b1; --line: #343b44; --accent: #82b1ff; --bar: #2f4a75;
  --right: #7fd6a0; --wrong: #ff9d8a; --c0: #82b1ff; --c1: #ffa657; --c2: #6fd69b;
  --c3: #f29be0; --c4: #d9b86c; --c5: #b6c0cb; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 72rem; background: var(--ground);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; color: var(--faint); overflow-wrap: anywhere; }
p { margin: .25rem 0; max-width: 70ch; }
.faint { color: var(--faint); font-size: .9rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; }
th.number, td.number { text-align: right; min-width: 4.5rem; }
td.number b { font-weight: inherit; }
td.sure b { font-weight: 700; }
td.number { white-space: nowrap; }
td.number small { white-space: normal; }
td.number .interval { white-space: nowrap; }
.scroll th:first-child { position: sticky; left: 0; background: var(--ground);
  min-width: 5rem; max-width: 17rem; overflow-wrap: break-word; }
td.best b { font-weight: 700; text-decoration: underline; text-underline-offset: 3px; }
thead th { max-width: 9rem; overflow-wrap: break-word; }
.scroll th.group { max-width: none; padding-top: 1rem; color: var(--faint); }
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
.curve polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.curve circle { fill: currentColor; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.d1 polyline { stroke-dasharray: 6 3; } .d2 polyline { stroke-dasharray: 2 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 .75rem; padding: 0;
  list-style: none; font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .4rem; min-width: 0;
  overflow-wrap: anywhere; }
.legend svg { flex: none; width: 28px; height: 8px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr));
  gap: 1rem; }
.sample { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; font-size: .92rem; overflow-wrap: anywhere; }
.pictures { display: flex; gap: .4rem; align-items: flex-start; }
.pictures img { flex: 1 1 0; min-width: 0; width: 100%; height: auto; max-height: 16rem;
  object-fit: contain;
  border-radius: 4px; }
.pictures img.tiny { image-rendering: pixelated; }
dl { margin: .4rem 0 0; }
dt { color: var(--faint); font-size: .8rem; margin-top: .25rem; overflow-wrap: anywhere; }
dd { margin: 0; }
dd details { margin: 0; }
dd ul { margin: 0; padding-left: 1rem; }
.mark { font-weight: 700; white-space: nowrap; }
dd .sure { color: var(--faint); white-space: nowrap; }
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
  td.number .interval { white-space: normal; }
  table { font-size: .88rem; }
  .scroll th:first-child { max-width: 7.5rem; }
  .gallery { grid-template-columns: repeat(2, 1fr); gap: .6rem; }
  .sample { padding: .45rem; font-size: .85rem; }
}
@media print { .sample, .chart { break-inside: avoid; } }
"""
