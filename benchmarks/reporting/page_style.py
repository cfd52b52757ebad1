"""How the page looks: dark on light, the system's own fonts, tables that scroll by themselves, and a form for paper."""

CSS = """
:root { color-scheme: light; --ink: #1d2329; --soft: #56606b; --line: #d8dde3; --ours: #b34e00; --bad: #a3123a; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1rem 1.2rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { margin: .5rem 0 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.4rem 0 .6rem; padding-top: .4rem; border-top: 2px solid var(--ink); font-size: 1.3rem; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1.05rem; }
header p, small { color: var(--soft); }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: #0b5394; }
.verdict { font-size: 1.2rem; font-weight: 600; max-width: 60rem; }
.lost li { color: var(--bad); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0; font-weight: 600; }
th, td { padding: .22rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td.why { text-align: left; }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
.rows tbody th { font-weight: 400; min-width: 11rem; max-width: 22rem; }
.rows th:first-child { position: sticky; left: 0; background: #fff; }
.rows tr.case th { position: static; max-width: none; padding-top: 1rem; background: #f1f3f5; }
.rows tr.case div { position: sticky; left: .5rem; width: fit-content; max-width: min(70rem, 86vw); }
.rows tr.case th span { font-weight: 700; font-size: 1em; color: var(--ink); }
.rows tr.case.disturbed th { background: #fff1d6; }
.rows tr.ours th, .rows tr.ours td { background: #fff4ec; }
.rows tr.ours th { color: var(--ours); font-weight: 600; }
.rows th span { display: block; font-size: .92em; font-weight: 400; color: var(--soft); }
.rows th span.best { color: #14632b; font-weight: 700; }
.rows tr.best td { font-weight: 700; }
.rows tr.inaccurate td { color: var(--soft); font-style: italic; }
.rows tr.wrong td, .rows tr.failed td, .rows th span.why { color: var(--bad); }
.rows tr.skipped td { color: var(--soft); }
.glance { margin-bottom: 1rem; }
.glance td { text-align: left; border: 1px solid #fff; min-width: 6.5rem; }
.glance th { text-align: left; white-space: nowrap; }
.glance .won { background: #dcefe0; } .glance .lost { background: #fbdde4; color: var(--bad); }
.glance .disturbed { background: #fff1d6; } .glance .uncontested, .glance .not-run { background: #f1f3f5; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem 2rem;
  align-items: start; }
.pairs { width: 100%; table-layout: fixed; }
.pairs th { text-align: left; width: 11rem; font-weight: 400; color: var(--soft); }
.pairs td { text-align: left; overflow-wrap: anywhere; } .pairs caption { font-size: 1rem; }
figure { margin: 1.5rem 0 2.5rem; }
figure img { width: 100%; max-width: 60rem; min-width: 40rem; height: auto; display: block; }
figcaption { max-width: 60rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1.2rem; }
pre { padding: .7rem; background: #f1f3f5; overflow-x: auto; white-space: pre-wrap; }
@media (max-width: 40rem) { body { padding: .5rem .7rem 3rem; font-size: 15px; } .rows tbody th { min-width: 8rem; } }
@media print { body { max-width: none; font-size: 10pt; } nav { display: none; } .scroll { overflow: visible; }
  table { font-size: 6.6pt; } tr, figure { break-inside: avoid; } thead { display: table-header-group; }
  figure img { min-width: 0; } .rows th:first-child { position: static; } .rows tbody th { min-width: 0; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
