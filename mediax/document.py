"""A report as plain data (headings, paragraphs, tables, code, figures), written as Markdown and as one HTML page.

Text is text: whatever means something in Markdown or HTML is escaped, here and nowhere else.
"""

from __future__ import annotations

import base64
import html
import io
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>|#&~])")


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title of the document, level 2 and 3 are listed in the contents."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `strong` for a warning."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text to copy, such as a command."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; a row may hold plain strings. The first column stands left, the others right unless `left`."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    left: bool = False


@dataclass(frozen=True)
class Figure:
    """A PNG: `file` is its path relative to the Markdown file, `png` its bytes, a copy of which the page holds."""

    file: str
    png: bytes
    caption: str


Block = Heading | Paragraph | Items | Code | Table | Figure


# Markdown.


def markdown(blocks: Sequence[Block]) -> str:
    """Writes blocks as GitHub's Markdown; figures are linked by their relative paths."""
    return "\n".join(line for block in blocks for line in (*_markdown_lines(block), ""))


def _markdown_lines(block: Block) -> Iterator[str]:
    match block:
        case Heading(text, level):
            yield f"{'#' * level} {_sign(text)}"
        case Paragraph(text, strong):
            yield f"**{_sign(text)}**" if strong else _sign(text)
        case Items(texts):
            yield from (f"- {_sign(text)}" for text in texts)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            yield from (fence, text, fence)
        case Table(header, rows, left):
            yield _markdown_row(header)
            yield "|".join(["", "---", *["---" if left else "---:"] * (len(header) - 1), ""])
            yield from map(_markdown_row, rows)
        case Figure(file, _, caption):
            yield f"![{_sign(caption)}]({urllib.parse.quote(file)})"
            yield ""
            yield f"*{_sign(caption)}*"


def _markdown_row(cells: Sequence[Cell | str]) -> str:
    texts = [f"**{_sign(text)}**" if strong and text else _sign(text) for text, strong in map(_parts, cells)]
    return f"| {' | '.join(texts)} |"


def _parts(cell: Cell | str) -> tuple[str, bool]:
    return (cell, False) if isinstance(cell, str) else (cell.text, cell.strong)


def _sign(text: str) -> str:
    return MARKDOWN_SIGNS.sub(r"\\\1", " ".join(text.split()))


# HTML.


def page(blocks: Sequence[Block]) -> str:
    """Writes blocks as one HTML page that needs no other file, no network and no script."""
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "")
    headings = [block for block in blocks if isinstance(block, Heading)]
    anchors = {id(block): f"section-{number}" for number, block in enumerate(headings)}
    body = [_html(block, anchors.get(id(block), "")) for block in blocks]
    after_title = next((i + 1 for i, block in enumerate(blocks) if isinstance(block, Heading)), 0)
    body.insert(after_title, _contents(headings, anchors))
    return PAGE.format(title=html.escape(title), style=STYLE, body="\n".join(body))


def _contents(headings: Sequence[Heading], anchors: dict[int, str]) -> str:
    items = [
        f'<li class="level-{heading.level}"><a href="#{anchors[id(heading)]}">{html.escape(heading.text)}</a></li>'
        for heading in headings
        if heading.level in (2, 3)
    ]
    return "\n".join(['<nav aria-label="Contents"><ul>', *items, "</ul></nav>"]) if items else ""


def _html(block: Block, anchor: str) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level} id="{anchor}">{html.escape(text)}</h{level}>'
        case Paragraph(text, strong):
            opening = '<p class="warning">' if strong else "<p>"
            return f"{opening}{html.escape(text)}</p>"
        case Items(texts):
            return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"
        case Code(text):
            return f"<pre><code>{html.escape(text)}</code></pre>"
        case Table(header, rows, left):
            head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in header)
            lines = [f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows]
            opening = '<div class="wide"><table class="left">' if left else '<div class="wide"><table>'
            return "\n".join([opening, f"<thead><tr>{head}</tr></thead><tbody>", *lines, "</tbody></table></div>"])
        case Figure(_, png, caption):
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/webp;base64,{_webp(png)}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _webp(png: bytes) -> str:
    """Encodes a figure at a third of its size, as base64; the lossless one lies beside the Markdown file."""
    webp = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(webp, "WEBP", quality=90)
    return base64.b64encode(webp.getvalue()).decode()


def _html_cell(cell: Cell | str) -> str:
    text, strong = _parts(cell)
    text = html.escape(text)
    return f"<td><strong>{text}</strong></td>" if strong else f"<td>{text}</td>"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
STYLE = """
:root { --ink: #1d2126; --soft: #5b6570; --line: #d8dde2; --shade: #f4f6f8; --paper: #ffffff; --link: #0b5fa5;
  --warn: #8a3b00; --warn-shade: #fff3e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #9aa5b0; --line: #3a424a; --shade: #22282e; --paper: #171b1f; --link: #7db8ea;
    --warn: #ffb98a; --warn-shade: #38271b; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "Noto Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
p, ul { max-width: 48rem; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: 2rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.45rem; margin: 3rem 0 .8rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 2.2rem 0 .6rem; }
a { color: var(--link); }
nav { background: var(--shade); border-radius: 6px; padding: .8rem 1.2rem; margin-bottom: 1.5rem; }
nav ul { list-style: none; margin: 0; padding: 0; columns: 20rem auto; }
nav .level-2 { font-weight: 600; }
nav .level-3 { padding-left: 1.2rem; }
li { overflow-wrap: anywhere; break-inside: avoid; }
.warning { color: var(--warn); background: var(--warn-shade); border-left: 4px solid currentColor;
  padding: .5rem .9rem; font-weight: 600; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--shade); vertical-align: bottom; }
th:first-child, td:first-child, .left th, .left td { text-align: left; }
pre { background: var(--shade); border-radius: 6px; padding: .8rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .86rem; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
figure { margin: 1.4rem 0; break-inside: avoid; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
@media print {
  :root { --ink: #000000; --soft: #444444; --line: #bbbbbb; --shade: #f3f3f3; --paper: #ffffff; --link: #000000;
    --warn: #000000; --warn-shade: #ffffff; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8.5pt; }
  tr { break-inside: avoid; }
}
"""
