"""The pages' style sheet. Nothing is fetched from anywhere."""

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1c1e; --quiet: #6a6c72; --line: #e3e3df; --rule: #ececea;
  --up: #17714a; --down: #b3372d; --partly: #8f610a; --accent: #2a68ad; --past: #8d9097; --warn: #fbf3e2;
  --c1: #2a68ad; --c2: #c96f1b; --c3: #23855a; --c4: #7a58b5; --c5: #b8433a; --c6: #57707a; --c7: #a38a12; }
@media (prefers-color-scheme: dark) { :root {
  --page: #131416; --card: #1b1c1f; --ink: #e9e9ea; --quiet: #999ba2; --line: #2d2f33; --rule: #26282c;
  --up: #55c08c; --down: #ef8379; --partly: #dba94c; --accent: #6cabea; --past: #858891; --warn: #2a2416;
  --c1: #6cabea; --c2: #eb9a4e; --c3: #58c290; --c4: #b096e8; --c5: #ee857b; --c6: #97b0ba; --c7: #d8bf4d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.015em; font-weight: 650; }
h2 { font-size: 19px; margin: 52px 0 4px; letter-spacing: -0.01em; font-weight: 620; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 0; }
small { font-size: 12px; color: var(--quiet); font-weight: 400; display: block; line-height: 1.35; }
.eyebrow { color: var(--quiet); font-size: 13px; margin-bottom: 6px; }
.lead, .note, .missing, .quiet { color: var(--quiet); }
.lead { max-width: 76ch; }
.note { font-size: 13px; max-width: 84ch; }
.missing { font-size: 13px; font-style: italic; }
.up { color: var(--up); } .down { color: var(--down); } .partly { color: var(--partly); }
.unsure { color: var(--ink); font-weight: 500; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 14px; font-size: 13px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 28px; }
.tile, .chart, .box { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; display: flex; flex-direction: column; gap: 4px; }
.tile-label { font-size: 13px; color: var(--quiet); }
.tile-figure { display: flex; align-items: baseline; gap: 7px; white-space: nowrap; font-size: 23px;
  letter-spacing: -0.02em; }
.tile-figure b { font-weight: 620; }
.tile-figure b:first-child:not(:last-child) { color: var(--past); font-weight: 500; }
.tile-figure i { font-style: normal; color: var(--past); font-size: 16px; }
.tile-note { font-size: 13px; display: flex; gap: 7px; align-items: baseline; }
.tile-note small { font-size: 12px; }
.tiles-note { margin-top: 10px; max-width: none; }
.box { margin-top: 14px; padding: 4px 18px 10px; overflow-x: auto; }
.compared { margin-top: 22px; } .compared + .box { margin-top: 8px; }
table { border-collapse: collapse; width: 100%; }
.results th, .results td { text-align: left; padding: 7px 0 7px 14px; vertical-align: top;
  border-top: 1px solid var(--rule); }
.results th:first-child { padding-left: 0; font-weight: 500; }
.results thead th { border: 0; font-size: 12px; color: var(--quiet); font-weight: 500; padding-top: 10px; }
.results .number { text-align: right; white-space: nowrap; }
.results b { font-weight: 600; } .results .sampled { border-left: 1px solid var(--rule); }
.results .group th { padding-top: 22px; font-size: 12px; font-weight: 600; color: var(--quiet); border: 0; }
.results tbody tr:first-child th { padding-top: 8px; }
.heat th, .heat td { text-align: left; padding: 5px 10px; white-space: nowrap; font-size: 13px; }
.heat th[scope=row] { font-weight: 500; }
.mark-cell { width: 96px; } .results thead .mark-cell { text-align: center; padding-right: 0; }
.results td.count-cell { color: var(--quiet); font-size: 13px; width: 84px; white-space: normal; }
.results tbody th[scope=row] { min-width: 218px; }
.guard + .note { margin-top: 12px; }
.mark { width: 84px; height: 16px; display: block; margin: 4px 0 0 8px; }
.mark .tick { stroke: var(--line); } .mark .whisker { stroke-width: 2; stroke-linecap: round; }
.mark .before { fill: var(--past); stroke: var(--past); } .mark .after { fill: var(--accent); stroke: var(--accent); }
.guard { background: var(--warn); border: 1px solid var(--line); border-left: 4px solid var(--partly);
  border-radius: 8px; padding: 12px 16px; margin-top: 12px; }
.guard b { font-weight: 620; } .guard p + p { color: var(--quiet); font-size: 14px; margin-top: 2px; }
.charts { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 12px; margin-top: 14px; }
.charts.pair { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.chart { padding: 14px 14px 8px; min-width: 0; display: flex; flex-direction: column; }
.chart .note, .chart .missing { font-size: 12px; line-height: 1.4; margin-top: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 1px 14px; font-size: 12px; color: var(--quiet); margin: 5px 0 6px; }
.legend b { color: var(--ink); font-weight: 600; }
.swatch { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 6px; }
.plot { position: relative; margin-top: auto; }
.plot svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font-size: 10.5px; fill: var(--quiet); } svg .end { text-anchor: end; }
.rule { stroke: var(--rule); } .dashed { stroke: var(--past); stroke-dasharray: 3 3; } .guide { stroke: var(--past); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .raw { fill: none; stroke-width: 1; opacity: 0.3; }
.line, .raw { vector-effect: non-scaling-stroke; } .band { fill: var(--accent); opacity: 0.15; }
.tip { position: absolute; top: 4px; pointer-events: none; background: var(--ink); color: var(--page); font-size: 12px;
  line-height: 1.4; padding: 5px 9px; border-radius: 6px; white-space: pre; z-index: 2; }
.stacked { padding: 6px 0 2px; } .stack { display: block; width: 100%; height: 18px; border-radius: 4px; }
.legend-table { margin-top: 12px; font-size: 13px; } .legend-table td { padding: 3px 0 3px 16px; text-align: right; }
.legend-table td:first-child { text-align: left; padding-left: 0; }
.tab-input { position: absolute; opacity: 0; pointer-events: none; }
.tab-bar { display: flex; flex-wrap: wrap; gap: 2px 22px; border-bottom: 1px solid var(--line); margin: 12px 0 12px; }
.tab-bar label { padding: 7px 0; cursor: pointer; color: var(--quiet); border-bottom: 2px solid transparent;
  margin-bottom: -1px; font-size: 14px; font-weight: 500; }
.tab-bar label:hover { color: var(--ink); } .tab-count { font-size: 12px; opacity: 0.75; }
.panel { display: none; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 16px;
  margin-top: 12px; }
.card header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 10px; margin-bottom: 12px; }
.card h3 { font-size: 15px; }
.tag { font-size: 12px; color: var(--quiet); border: 1px solid var(--line); border-radius: 99px; padding: 0 8px; }
.phase { font-size: 12px; color: var(--quiet); } .verdict { font-size: 13px; font-weight: 550; }
.card header .phase { margin-left: auto; }
.outcome { display: flex; gap: 10px; align-items: baseline; margin: 14px 0 8px; padding-top: 10px;
  border-top: 1px solid var(--rule); }
header + .outcome { margin-top: 0; }
.outcome .phase { font-weight: 600; color: var(--ink); font-size: 13px; }
.rounds { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 18px; }
.round { display: grid; grid-template-columns: 132px minmax(0, 1fr); gap: 12px; align-items: start; }
figure { margin: 0; } figure img, .no-image { display: block; width: 132px; height: 132px; object-fit: contain;
  background: #0b0b0c; border-radius: 6px; }
.no-image { display: grid; place-items: center; background: var(--rule); }
.hard { image-rendering: pixelated; }
figcaption { display: flex; justify-content: space-between; font-size: 13px; margin-top: 5px; color: var(--quiet); }
figcaption b { font-weight: 620; } .words { font-size: 12px; color: var(--quiet); line-height: 1.4; margin-top: 2px; }
.said { font-size: 13px; line-height: 1.45; } .critique { color: var(--quiet); white-space: pre-line; }
.instruction { font-weight: 550; margin-top: 6px; } .instruction i { font-style: normal; color: var(--accent); }
.critique:empty + .instruction { margin-top: 0; }
details summary { cursor: pointer; color: var(--quiet); }
.plan { margin-top: 8px; font-size: 12px; color: var(--quiet); }
.fold { margin-top: 12px; } .fold > summary { font-size: 14px; padding: 4px 0; color: var(--ink); }
.filters { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: end; margin: 22px 0 4px; font-size: 13px; }
.filters label { display: grid; gap: 3px; color: var(--quiet); } .filters output { padding: 5px 0; }
.filters input, .filters select { font: inherit; color: var(--ink); background: var(--card); padding: 4px 8px;
  border: 1px solid var(--line); border-radius: 6px; max-width: 100%; } .filters input { width: 300px; }
[hidden] { display: none !important; }
code { font: 0.93em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { margin: 8px 0 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow-x: auto; font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: normal; }
.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 22px; margin: 8px 0 0;
  font-size: 13.5px; }
.facts dt { color: var(--quiet); } .facts dd { margin: 0; }
footer { margin-top: 56px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 12.5px;
  color: var(--quiet); }
@media (max-width: 900px) {
  .tiles { grid-template-columns: repeat(2, 1fr); } .charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .rounds { grid-template-columns: 1fr; gap: 14px; } }
@media (max-width: 620px) {
  main { padding: 24px 14px 48px; } h1 { font-size: 25px; } h2 { margin-top: 42px; }
  .charts, .charts.pair { grid-template-columns: 1fr; } .tile { padding: 12px; }
  .tile-figure { font-size: 18px; gap: 4px; }
  .tiles { gap: 8px; } .tile-figure i { font-size: 13px; } .tile-note { flex-direction: column; gap: 0; }
  .box { padding: 2px 14px 10px; } .results .mark-cell, .results .count-cell { display: none; }
  .results thead th:first-child { display: none; } .results small { font-size: 11.5px; }
  .results tr { display: grid; grid-template-columns: 5fr 4fr 5fr; column-gap: 8px;
    border-top: 1px solid var(--rule); padding: 7px 0; }
  .results th, .results td, .results tbody tr:first-child th { border: 0; padding: 0; }
  .results tbody th { grid-column: 1 / -1; padding-bottom: 3px; } .results td.number { text-align: left; }
  .results td[colspan] { grid-column: 1 / -1; } .results .sampled { border: 0; }
  .results tbody th[scope=row] { min-width: 0; }
  .results thead th { text-align: left; font-size: 11.5px; } .results thead tr, .results .group { border: 0; }
  .results thead th.number { text-align: left; } .results .group th { padding-top: 12px; }
  .heat th[scope=row], .heat th[scope=colgroup] { white-space: normal; min-width: 128px; }
  .wide text { font-size: 16px; } .card header .phase { margin-left: 0; }
  .round { grid-template-columns: 104px minmax(0, 1fr); gap: 3px 12px; } .round figure { display: contents; }
  figure img, .no-image { width: 104px; height: 104px; } figcaption { grid-column: 1; margin: 0; }
  .said { grid-column: 2; grid-row: 1 / span 2; } .words { grid-column: 1 / -1; margin: 0; } }
"""


def colour_rules(num_colours: int) -> str:
    """Rules that give lines, areas and swatches the colours --c1, --c2, ..."""
    return "".join(
        f".line.c{k}, .raw.c{k} {{ stroke: var(--c{k}); }} .fill.c{k} {{ fill: var(--c{k}); }} "
        f".swatch.c{k} {{ background: var(--c{k}); }}\n"
        for k in range(1, num_colours + 1)
    )


def tab_rules(num_tabs: int) -> str:
    """Rules that show the chosen tab's panel without a script."""
    chosen = ", ".join(
        f".tab-input:nth-of-type({k}):checked ~ .panel:nth-of-type({k + 1})" for k in range(1, num_tabs + 1)
    )
    marked = ", ".join(
        f".tab-input:nth-of-type({k}):checked ~ .tab-bar label:nth-of-type({k})" for k in range(1, num_tabs + 1)
    )
    focused = ", ".join(
        f".tab-input:nth-of-type({k}):focus-visible ~ .tab-bar label:nth-of-type({k})" for k in range(1, num_tabs + 1)
    )
    return (
        f"{chosen} {{ display: block; }}\n{marked} {{ color: var(--ink); border-color: var(--accent); }}\n"
        f"{focused} {{ outline: 2px solid var(--accent); outline-offset: 2px; }}\n"
    )
