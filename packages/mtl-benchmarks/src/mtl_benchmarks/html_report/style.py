"""How the page looks: readable from a phone to a printed sheet, in light colours, without any file beside it."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { --ink: #222; --muted: #5c5c5c; --line: #d9d9d9; --soft: #f5f6f7; --accent: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0; }
a { color: var(--accent); }
nav ul { list-style: none; padding: 0; margin: .8rem 0; }
nav li { margin: .15rem 0; }
.lead, .notes, figcaption { color: var(--muted); }
.notes, figcaption { font-size: .87rem; }
.caveats { background: #fff8e6; border-left: 4px solid #e69f00; padding: .5rem 1rem; margin: 1rem 0; }
.caveats ul { margin: .3rem 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; margin: .4rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .28rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.scroll th:first-child { position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 1px solid var(--ink); border-top: 2px solid var(--ink); font-weight: 600;
  white-space: normal; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 400; white-space: normal; min-width: 12rem; overflow-wrap: break-word; }
thead small { display: block; font-weight: 400; color: var(--muted); }
tr.single-task, tr.published { color: var(--muted); }
tbody tr.first-of-kind th, tbody tr.first-of-kind td { border-top: 1px solid var(--line); }
table.facts { width: 100%; }
table.facts th, table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; padding-left: 0;
  border-bottom: 1px solid var(--line); }
table.facts th { width: 34%; color: var(--muted); font-weight: 400; }
figure { margin: 1.4rem 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { margin-top: .3rem; }
pre { background: var(--soft); padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .6rem; color: var(--muted);
  font-size: .85rem; }
@media (max-width: 30rem) {
  body { padding: .8rem .7rem 3rem; font-size: 15px; }
  th, td { padding: .25rem .45rem; }
  tbody th { min-width: 8rem; max-width: 9rem; }
  figure img { max-width: none; width: 42rem; }
}
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; }
  .scroll th:first-child { position: static; }
  table { font-size: 8pt; }
  th, td { padding: .15rem .3rem; }
  figure, tr, .caveats { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  h2 { break-before: page; }
  details > * { display: block; }
}
"""
