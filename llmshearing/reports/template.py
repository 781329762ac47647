"""The HTML around plots and tables: no scripts, nothing fetched, dark and light theme."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from llmshearing.tables import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #5a6372; --grid: #dfe3ea;
  --page: #f4f5f8; --card: #ffffff; --accent: #2a69ac; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --grid: #343b48; --page: #12151b; --card: #1b2029;
    --accent: #7db4ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1600px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
p { margin: .25rem 0 1rem; color: var(--soft); max-width: 75ch; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9rem; }
a { color: var(--accent); }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); align-items: start; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure, .card { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
figcaption b { color: var(--ink); }
.card { overflow-x: auto; max-width: 100%; }
.cards .card { max-height: 80vh; overflow-y: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; font-weight: 600; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
th { color: var(--soft); font-weight: 600; }
.prose th, .prose td { text-align: left; }
.prose td { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
.prose td:first-child { white-space: nowrap; min-width: 0; vertical-align: top;
  color: var(--soft); }
@media (max-width: 600px) { main { padding: .6rem; } th, td { padding: .3rem .5rem; }
  table { font-size: .8rem; } figure, .card { padding: .5rem; } }
@media print { .cards .card { max-height: none; } figure, tr { break-inside: avoid; } }
.stack { display: grid; gap: 1rem; grid-template-columns: minmax(0, 1fr); }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.4; }
"""


class Plot(NamedTuple):
    """A figure of the page: its name, what it shows, and the drawing as SVG."""

    title: str
    caption: str
    svg: str


def page(title: str, lead: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole page, with a sentence `lead` below the title.

    Sections have a title and parts in HTML; empty parts and sections are left out.
    """
    shown = [(heading, [*filter(None, parts)]) for heading, parts in sections if any(parts)]
    links = "\n".join(
        f'<a href="#section-{number}">{escape(heading)}</a>'
        for number, (heading, _) in enumerate(shown)
    )
    body = "\n".join(
        f'<section id="section-{number}">\n<h2>{escape(heading)}</h2>\n<div class="stack">\n'
        + "\n".join(parts)
        + "\n</div>\n</section>"
        for number, (heading, parts) in enumerate(shown)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
<nav>{links}</nav>
{body}
</main>
</body>
</html>
"""


def plots(found: Sequence[Plot]) -> str:
    """Figures next to each other, as many as fit the page's width."""
    figures = "\n".join(
        f'<figure role="img" aria-label="{escape(plot.title)}">\n{plot.svg}\n'
        f"<figcaption><b>{escape(plot.title)}.</b> {escape(plot.caption)}</figcaption>\n</figure>"
        for plot in found
    )
    return f'<div class="plots">\n{figures}\n</div>' if found else ""


def cards(tables: Sequence[Table]) -> str:
    """Tables next to each other, as many as fit; those without rows are left out."""
    shown = "\n".join(_table(content) for content in tables if content.rows)
    return f'<div class="cards">\n{shown}\n</div>' if shown else ""


def _table(content: Table) -> str:
    """A table; a wide one scrolls within its card."""
    head = "".join(f"<th>{escape(name)}</th>" for name in content.header)
    head = f"<thead><tr>{head}</tr></thead>\n" if head else ""
    kind = ' class="prose"' if content.prose else ""
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in content.rows
    )
    return (
        f'<div class="card"><table{kind}><caption>{escape(content.title)}</caption>'
        f"{head}<tbody>\n{rows}\n</tbody></table></div>"
    )


def folded(title: str, text: str) -> str:
    """Text that opens on a click."""
    return (
        f'<details class="card"><summary>{escape(title)}</summary>'
        f"<pre>{escape(text)}</pre></details>"
    )
