"""The report's looks. Colours of curves are Okabe and Ito's, told apart also by dash, so that no eye is left out."""

CSS = """
:root { --bg:#fbfaf7; --card:#fff; --ink:#1c2024; --soft:#5d666f; --line:#e3e0d8; --track:#d9d5cb;
    --accent:#0b6e8f; --good:#0a7a4b; --good-bg:#e2f3ea; --bad:#b3261e; --bad-bg:#fbe6e4; --c0:#0072b2;
    --c1:#d55e00; --c2:#007a5a; --c3:#a4478a }
@media (prefers-color-scheme:dark) {
  :root { --bg:#13161a; --card:#1b1f25; --ink:#e8e6e1; --soft:#9aa4ae; --line:#2d333b; --track:#3a414b;
    --accent:#5cc1e0; --good:#5fd39b; --good-bg:#12352a; --bad:#ff8a80; --bad-bg:#42211f; --c0:#56b4e9;
    --c1:#ff9d4d; --c2:#4cd1a5; --c3:#e39ccb }
}
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink);
    font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; font-variant-numeric:tabular-nums;
    -webkit-text-size-adjust:100% }
main { max-width:1160px; margin:0 auto; padding:40px 24px 64px }
h1 { font-size:2.3rem; line-height:1.15; margin:.1em 0 .6em; letter-spacing:-.02em }
h2 { font-size:1.3rem; margin:0 0 14px; letter-spacing:-.01em }
h3 { font-size:1rem; margin:0 0 10px }
h4 { margin:0 0 4px; font-size:.78rem; color:var(--soft); font-weight:600 }
small { color:var(--soft); font-size:.8rem; font-weight:400 }
.kicker { margin:0; color:var(--accent); font-weight:600; font-size:.85rem; letter-spacing:.04em }
section { background:var(--card); border:1px solid var(--line); border-radius:14px; padding:24px;
    margin:22px 0 }
section>p:first-of-type { margin-top:-6px; color:var(--soft) }
.tiles { display:flex; flex-wrap:wrap; gap:12px }
.tile { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:12px 18px;
    min-width:150px }
.tile strong { display:block; font-size:1.5rem; line-height:1.2 }
.tile span { color:var(--soft); font-size:.85rem }
.tile.good strong { color:var(--good) }
.tile.bad strong { color:var(--bad) }
.chips { list-style:none; display:flex; flex-wrap:wrap; gap:6px 16px; margin:16px 0 0; padding:0;
    color:var(--soft); font-size:.82rem }
.chips b { font-weight:600; color:var(--ink) }
table { border-collapse:collapse; width:100% }
th,td { text-align:left; padding:9px 12px 9px 0; vertical-align:top; border-bottom:1px solid var(--line) }
tr:last-child>* { border-bottom:0 }
thead th { color:var(--soft); font-weight:600; font-size:.82rem; border-bottom:1px solid var(--track);
    white-space:nowrap }
tbody th { font-weight:600 }
.stages th small { display:block }
td small { display:block }
.n { text-align:right }
.nowrap { white-space:nowrap }
.up { color:var(--good) }
.down { color:var(--bad) }
.none { color:var(--soft); text-align:right }
.scroll { overflow-x:auto }
.badge { display:inline-block; border-radius:99px; padding:1px 9px; font-size:.78rem; background:var(--line);
    white-space:nowrap }
.badge.good,.badge.completed { background:var(--good-bg); color:var(--good) }
.badge.bad,.badge.failed,.badge.unreadable { background:var(--bad-bg); color:var(--bad) }
.badge.interrupted,.badge.running { background:var(--line); color:var(--c1) }
.figures { min-width:560px }
.figures td { width:16%; min-width:112px; padding-left:14px }
.figures thead th { text-align:right }
.figures td small { display:block; white-space:nowrap }
.figures tbody th { font-weight:400; min-width:130px }
.figures td b { font-size:1.02rem }
.figures .badge { margin-top:4px; max-width:150px; white-space:normal; overflow-wrap:anywhere; border-radius:9px }
.figures .group th { padding-top:20px; font-weight:700; border-bottom:1px solid var(--track) }
.figures .group small { margin-left:10px }
.figures .group:first-child th { padding-top:4px }
.claims { min-width:600px }
.bar { display:block; width:100%; height:10px; margin-top:3px }
.track { stroke:var(--track); stroke-width:1.4 }
.band { fill:var(--c0); opacity:.35 }
.point { fill:var(--c0) }
code,pre { font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
pre { background:var(--bg); border:1px solid var(--line); border-radius:8px; padding:8px 12px; overflow-x:auto;
    margin:6px 0 14px }
.given code { overflow-wrap:anywhere }
.given th { white-space:nowrap; font-weight:400; color:var(--soft) }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(320px,1fr)); gap:18px 26px }
figure { margin:0 }
figcaption { font-weight:600; font-size:.9rem; margin-bottom:2px }
h3.stage { margin:26px 0 8px; padding-top:14px; border-top:1px solid var(--line) }
h3.stage:first-of-type { margin-top:0; padding-top:0; border-top:0 }
.chart { display:block; width:100%; height:auto }
.grid { stroke:var(--line); stroke-width:1 }
.tick { font-size:11px; fill:var(--soft) }
.axis { font-size:11.5px; fill:var(--ink) }
.line { fill:none; stroke-width:1.9; stroke-linejoin:round }
.c0 { stroke:var(--c0) }
.c1 { stroke:var(--c1); stroke-dasharray:6 3 }
.c2 { stroke:var(--c2); stroke-dasharray:2 3 }
.c3 { stroke:var(--c3); stroke-dasharray:9 3 2 3 }
.dot { fill:var(--card); stroke-width:1.8; stroke-dasharray:none }
rect.heat { fill:var(--c0) }
.keys { display:flex; gap:16px; font-size:.82rem; color:var(--soft) }
.key { width:22px; height:8px; margin-right:5px }
.tree { max-width:none; display:block }
.node rect { fill:var(--bg); stroke:var(--accent); stroke-width:1.5 }
.node.assess rect { stroke:var(--track); stroke-dasharray:4 3 }
.node.failed rect,.node.unreadable rect { stroke:var(--bad) }
.node.interrupted rect { stroke:var(--c1) }
.node .name { font-size:13.5px; font-weight:600; fill:var(--ink) }
.node .below { font-size:11.5px; fill:var(--soft) }
.edge { fill:none; stroke:var(--track); stroke-width:1.5 }
.arrow { fill:var(--track) }
.sample { padding:14px 0; border-bottom:1px solid var(--line) }
.sample:last-of-type { border-bottom:0 }
.sample h3 { font-weight:600 }
.gold { color:var(--soft); font-weight:400; font-size:.85rem; margin-left:8px }
.answers { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:10px }
.answers>div { background:var(--bg); border:1px solid var(--line); border-radius:8px; padding:8px 12px }
.answers p { margin:0 0 4px; white-space:pre-wrap; overflow-wrap:anywhere }
.answers i,.cut { color:var(--soft) }
details { margin-top:12px }
summary { cursor:pointer; color:var(--accent) }
details>*:nth-child(2) { margin-top:10px }
footer { color:var(--soft); font-size:.85rem; margin-top:26px }
@media (max-width:720px) {
  main { padding:24px 14px 40px }
  section { padding:18px 14px }
  h1 { font-size:1.8rem }
  .tile { flex:1 1 42%; min-width:0 }
  .stages thead { display:none }
  .stages tr { display:block; padding:10px 0; border-bottom:1px solid var(--line) }
  .stages tr:last-child { border-bottom:0 }
  .stages th,.stages td { display:flex; justify-content:space-between; gap:14px; border:0; padding:3px 0;
    text-align:right; flex-wrap:wrap }
  .stages th { font-size:1.05rem }
  .stages td::before { content:attr(data-label); color:var(--soft); text-align:left }
  .charts { grid-template-columns:1fr }
}
@media print {
  section { break-inside:avoid }
}
"""
