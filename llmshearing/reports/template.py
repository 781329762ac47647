"""The page around plots and tables: no script, nothing fetched, dark and light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f27; --soft: #5a6372; --grid: #dfe3ea;
  --page: #f4f5f8; --card: #ffffff; --accent: #2a69ac; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --grid: #343b48; --page: #12151b; --card: #1b2029;
    --accent: #7db4ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
p { margin: .25rem 0 1rem; color: var(--soft); max-width: 75ch; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure, .card { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .85rem; color: var(--soft); margin-top: .4rem; }
figcaption b { color: var(--ink); }
.card { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; font-weight: 600; }
th, td { padding: .3rem .75rem; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
th { color: var(--soft); font-weight: 600; }
.stack { display: grid; gap: 1rem; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.4; }
"""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what stands above it.
        header: names of the columns.
        rows: cells; the first of a row names it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        title: its name.
        caption: what is drawn.
        svg: the drawing.
    """

    title: str
    caption: str
    svg: str


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """The whole page out of its sections."""
    body = "\n".join(sections)
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
{body}
</main>
</body>
</html>
"""


def section(title: str, parts: Sequence[str]) -> str:
    """A heading and what stands below it; nothing where there are no parts."""
    parts = [part for part in parts if part]
    if not parts:
        return ""
    content = "\n".join(parts)
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<div class="stack">\n{content}\n</div>\n</section>'
    )


def plots(found: Sequence[Plot]) -> str:
    """Figures side by side, as many as the page is wide."""
    figures = "\n".join(
        f'<figure role="img" aria-label="{escape(plot.title)}">\n{plot.svg}\n'
        f"<figcaption><b>{escape(plot.title)}.</b> {escape(plot.caption)}</figcaption>\n</figure>"
        for plot in found
    )
    return f'<div class="plots">\n{figures}\n</div>' if found else ""


def table(content: Table) -> str:
    """A table; wide ones scroll within themselves."""
    if not content.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in content.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in content.rows
    )
    return (
        f'<div class="card"><table><caption>{escape(content.title)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def folded(title: str, text: str) -> str:
    """Text that opens by a click."""
    return (
        f'<details class="card"><summary>{escape(title)}</summary>'
        f"<pre>{escape(text)}</pre></details>"
    )
