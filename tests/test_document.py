"""Text of any kind stays text, in Markdown and in HTML; the page needs nothing but itself."""

import io
from html.parser import HTMLParser

import pytest
from PIL import Image

from mediax.document import Cell, Code, Figure, Heading, Items, Paragraph, Table, markdown, page

HOSTILE = "<script>alert('x')</script> | `code` **bold** [link](http://example.org) &amp; #1"


def png():
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (0, 114, 178)).save(content, "PNG")
    return content.getvalue()


class Parsed(HTMLParser):
    """Collects the tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def blocks():
    return [
        Heading(HOSTILE, 1),
        Paragraph(HOSTILE),
        Heading(HOSTILE),
        Paragraph(HOSTILE, strong=True),
        Items([HOSTILE, "second"]),
        Heading("rows", 3),
        Table(["name", HOSTILE], [[Cell(HOSTILE, strong=True), HOSTILE], ["two\nlines", Cell("")]]),
        Code(f"{HOSTILE} ````"),
        Figure("figures/a b.png", png(), HOSTILE),
    ]


def test_the_page_shows_hostile_text_and_runs_none_of_it(blocks):
    parsed = Parsed(page(blocks))
    names = [name for name, _ in parsed.tags]
    assert parsed.open == [] and "script" not in names and "b" not in names
    assert parsed.text.count(HOSTILE) == 12  # title, contents, nine places, and the caption; alt is an attribute
    image = next(attributes for name, attributes in parsed.tags if name == "img")
    assert image["alt"] == HOSTILE and image["src"].startswith("data:image/webp;base64,UklGR")


def test_the_page_needs_no_other_file(blocks):
    for name, attributes in Parsed(page(blocks)).tags:
        assert name not in ("link", "script", "iframe")
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    assert "url(" not in page(blocks) and "@import" not in page(blocks)


def test_the_contents_lead_to_the_headings(blocks):
    tags = Parsed(page(blocks)).tags
    links = [attributes["href"] for name, attributes in tags if name == "a"]
    anchors = [f"#{attributes['id']}" for name, attributes in tags if name in ("h2", "h3")]
    assert links == anchors and len(set(links)) == 2


def test_markdown_keeps_cells_apart_and_code_whole(blocks):
    lines = markdown(blocks).splitlines()
    table = [line for line in lines if line.startswith(("| ", "|-"))]
    assert [line.replace("\\|", "").count("|") for line in table] == [3, 3, 3, 3]
    fences = [i for i, line in enumerate(lines) if line == "`````"]
    assert lines[fences[0] + 1 : fences[1]] == [f"{HOSTILE} ````"]
    outside = "\n".join(lines[: fences[0]] + lines[fences[1] :])
    assert "<script>" not in outside and "\\<script\\>" in outside
    assert "(figures/a%20b.png)" in outside


def test_an_empty_document_is_a_page():
    assert Parsed(page([])).open == [] and markdown([]) == ""
