"""How the report looks: one style sheet for light, dark and paper, with the colours that the curves refer to."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --card: #ffffff; --ink: #22252b; --ink-soft: #646a76; --rule: #e3e3de; --grid: #e4e5e6;
  --accent: #2563a8; --good: #23733d; --bad: #ad2f34; --wait: #8a6212; --tint: #f3f4f2;
  --line-0: #2563a8; --line-1: #d1620f; --line-2: #2f8a4c; --line-3: #a8327f;
  --line-4: #6b55c4; --line-5: #8a6d1d; --line-6: #138a8f; --line-7: #b3363b;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #e6e7ea; --ink-soft: #a0a6b3; --rule: #2d323b; --grid: #333944;
    --accent: #7db2f0; --good: #6fcb8b; --bad: #f28d8f; --wait: #e2b45c; --tint: #22262d;
    --line-0: #6aa9f4; --line-1: #f59a52; --line-2: #6fcb8b; --line-3: #e583c3;
    --line-4: #ab9bf5; --line-5: #d6bd63; --line-6: #55c9cc; --line-7: #f28d8f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; padding-top: 18px; border-top: 1px solid var(--rule); }
h3 .soft { font-weight: 400; font-size: 12.5px; margin-left: 4px; }
h3 { font-size: 14px; margin: 20px 0 8px; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0 0 10px; }
.soft, figcaption { color: var(--ink-soft); }
.soft { font-size: 13.5px; overflow-wrap: anywhere; }
code, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.pill {
  display: inline-block; padding: 0 9px; border-radius: 99px; border: 1px solid currentColor;
  font-size: 12px; line-height: 1.55; white-space: nowrap;
}
.finished { color: var(--good); } .failed { color: var(--bad); } .stopped, .open { color: var(--wait); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 10px; margin: 20px 0 0; }
.number { background: var(--card); border: 1px solid var(--rule); border-radius: 9px; padding: 11px 14px 10px; }
.number dt { color: var(--ink-soft); font-size: 12.5px; }
.number dd { margin: 1px 0 0; font-size: 23px; font-weight: 600; line-height: 1.25; }
.number .note { color: var(--ink-soft); font-size: 12px; line-height: 1.35; font-weight: 400; margin-top: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(470px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px 8px; }
figure { background: var(--card); border: 1px solid var(--rule); border-radius: 9px; }
figure h3 { margin: 0 0 2px; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: 1px 16px; margin: 0 0 4px; padding: 0; list-style: none; }
.legend { font-size: 12.5px; }
.legend li { display: flex; align-items: center; gap: 6px; color: var(--ink-soft); overflow-wrap: anywhere; }
.legend i { flex: none; width: 18px; border-top: 2.5px solid; }
.legend i.dashed { border-top-style: dashed; }
.picture { padding: 12px 14px; margin: 0 0 14px; }
.picture img { display: block; max-width: 100%; height: auto; margin: 4px 0 2px; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 9px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td, tr:last-child > th { border-bottom: 0; }
thead th { color: var(--ink-soft); font-weight: 500; font-size: 12.5px; background: var(--tint); }
.runs th { color: var(--ink); font-weight: 600; min-width: 130px; }
tbody th { font-weight: 500; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.best { font-weight: 700; color: var(--good); }
td.wide, th.wide { overflow-wrap: anywhere; min-width: 150px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.numbers-table { margin-top: 20px; }
.more { margin-top: 14px; }
details { margin: 0 0 10px; }
summary { cursor: pointer; font-weight: 500; padding: 3px 0; }
details > .table { margin-top: 6px; }
.warnings { margin: 18px 0 0; padding: 10px 16px; border-left: 3px solid var(--wait); background: var(--tint); }
.warnings ul { margin: 4px 0 0; padding-left: 18px; }
.warnings li { overflow-wrap: anywhere; }
@media print {
  body { font-size: 11pt; background: none; }
  main { max-width: none; padding: 0; }
  .charts { grid-template-columns: 1fr 1fr; }
  figure, .number, tr { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
}
""".strip()
