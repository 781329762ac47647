"""The page."""

import re
from html.parser import HTMLParser

import pytest

from llmshearing.errors import UserError
from llmshearing.reports.page import write_report
from llmshearing.reports.template import Table

VOID = {"meta", "link", "br", "img"}


class Checker(HTMLParser):
    """Sees that elements close in order, and collects ids and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.count = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        names = ("src", "href", "xlink:href")
        self.addresses += [attributes[name] for name in names if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(path):
    checker = Checker()
    checker.feed(path.read_text())
    assert not checker.open
    return checker


def test_a_page_of_several_runs(make_run):
    runs = [make_run("a/prune"), make_run("a/continue", prunes=False)]
    path = write_report(runs)
    assert path == runs[0] / "report.html"
    page = check(path)
    assert page.count["figure"] == 3 + 5 + 2
    assert page.count["svg"] == page.count["figure"]
    assert len(set(page.ids)) == len(page.ids)
    pictures = sorted(file.name for file in (runs[0] / "report-plots").iterdir())
    assert len(pictures) == page.count["figure"]
    assert "prune-masks.png" in pictures
    text = path.read_text()
    assert "&lt;here &amp; there&gt;" in text
    assert "<here" not in text


def test_nothing_leaves_the_page(make_run):
    path = write_report([make_run()])
    page = check(path)
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text())
    assert "http" not in text
    assert "<script" not in text
    assert "@import" not in text


def test_colours_follow_the_theme(make_run):
    text = write_report([make_run()]).read_text()
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "var(--ink)" in svg
    assert "#1b1f27" not in svg
    assert "prefers-color-scheme: dark" in text


def test_a_live_run(make_run, tmp_path):
    directory = make_run(steps=120, manifest=False)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 125, "tok')
    path = write_report([directory], tmp_path / "page/live.html")
    check(path)
    assert "120 of 300" in path.read_text()
    assert (tmp_path / "page/live-plots").is_dir()


def test_tables_of_ones_own_come_first(make_run, tmp_path):
    table = Table("Models", ("model", "loss"), [("sheared <1>", "4.2")])
    text = write_report([make_run()], tmp_path, title="All", first=[table]).read_text()
    assert text.index("sheared &lt;1&gt;") < text.index("<svg")
    assert "<h1>All</h1>" in text


def test_the_same_run_gives_the_same_page(make_run, tmp_path):
    run = make_run()
    first = write_report([run], tmp_path / "1.html").read_text()
    assert write_report([run], tmp_path / "2.html").read_text() == first


def test_no_run(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        write_report([])
    with pytest.raises(UserError, match="expected a run directory"):
        write_report([tmp_path])
