"""The page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmshearing.cli import main
from llmshearing.errors import UserError
from llmshearing.reports import run_tables
from llmshearing.reports.page import OF_A_RUN, write_report
from llmshearing.reports.run_directory import read_run, read_runs
from llmshearing.tables import Table

VOID = {"meta", "link", "br", "img"}


class Checker(HTMLParser):
    """Checks that elements close in order, and collects ids and addresses."""

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


def test_the_page_of_several_runs_has_every_plot(two_runs, page_of_two):
    runs, path = two_runs, page_of_two
    assert path == runs[0] / "report.html"
    page = check(path)
    assert page.count["figure"] == 3 + 7 + 3
    assert page.count["svg"] == page.count["figure"]
    assert len(set(page.ids)) == len(page.ids)
    pictures = sorted(file.name for file in (runs[0] / "report").iterdir())
    assert len(pictures) == page.count["figure"]
    assert "1-prune-masks.png" in pictures
    assert all((runs[0] / "report" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    text = path.read_text()
    absent = {"Distillation", "Divergence by domain", "Benchmarks"}  # of these runs
    for title in ({title for title, *_ in OF_A_RUN} | {"Throughput"}) - absent:
        assert f"<figcaption><b>{title}.</b>" in text
    assert "&lt;here &amp; there&gt;" in text
    assert "<here" not in text


def test_links_point_to_their_sections(page_of_two):
    page = check(page_of_two)
    links = [address[1:] for address in page.addresses if address.startswith("#section")]
    assert len(links) == 3
    assert set(links) <= set(page.ids)


@pytest.mark.parametrize(
    ("out", "page"),
    [("x.html", "x.html"), ("new", "new/report.html"), ("", "report.html")],
)
def test_out_is_a_page_or_a_folder_for_one(tmp_path, out, page):
    run, root = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    root.mkdir()
    (run / "config.yaml").write_text("run: {duration: 3ba}\n")
    assert write_report([run], root / out) == root / page
    assert (root / page).is_file()


def test_the_page_of_a_run_of_the_papers_size_is_small(make_run):
    directory = make_run(steps=51_200, every=25)
    random = np.random.default_rng(0)
    scores = {
        "hidden": random.beta(0.2, 0.2, size=4096),
        "layer": random.beta(0.2, 0.2, size=32),
        "head": random.beta(0.2, 0.2, size=(32, 32)),
        "intermediate": random.beta(0.2, 0.2, size=(32, 11008)),
    }
    scores = {axis: table.astype(np.float32) for axis, table in scores.items()}
    save_file(scores, directory / "masks/ba51201.safetensors")
    assert write_report([directory]).stat().st_size < 1_500_000


def test_the_page_refers_to_nothing_outside_itself(page_of_two):
    page = check(page_of_two)
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page_of_two.read_text())
    assert "http" not in text
    assert "<script" not in text
    assert "@import" not in text


def test_plots_take_their_colors_from_the_theme(page_of_two):
    text = page_of_two.read_text()
    svg = text[text.index("<svg") : text.rindex("</svg>")]
    assert "var(--ink)" in svg
    assert "#1b1f27" not in svg
    assert "prefers-color-scheme: dark" in text


def test_a_run_can_be_reported_while_it_continues(make_run, tmp_path):
    directory = make_run(steps=120, manifest=False)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 125, "tok')
    path = write_report([directory], tmp_path / "page/live.html")
    check(path)
    assert "120 of 300" in path.read_text()
    assert (tmp_path / "page/live").is_dir()


def test_the_callers_tables_come_first(tmp_path):
    table = Table("Models", ("model", "loss"), [("sheared <1>", "4.2")])
    run = tmp_path / "new"
    run.mkdir()
    (run / "config.yaml").write_text("run: {duration: 3ba}\n")
    text = write_report([run], tmp_path, title="All", first=[table]).read_text()
    assert text.index("sheared &lt;1&gt;") < text.index("0 of 3")
    assert "<h1>All</h1>" in text


def test_the_same_runs_give_the_same_page(two_runs, page_of_two, tmp_path):
    assert write_report(two_runs, tmp_path / "2.html").read_text() == page_of_two.read_text()


def test_a_run_with_nothing_but_its_recipe_has_a_page(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text("run:\n  duration: 10ba\n")
    check(write_report([tmp_path / "new"]))
    assert "0 of 10" in (tmp_path / "new/report.html").read_text()


def test_runs_are_compared_by_loss_and_recipe(make_run):
    first, second = make_run("one"), make_run("two", steps=100)
    file = second / "config.yaml"
    file.write_text(file.read_text().replace("300ba", "100ba") + "target: null\n")
    runs = read_runs([first, second])
    rows = {row[0]: row[1:] for row in run_tables.domains_of_runs(runs).rows}
    expected = [f"{run.series('metrics/python/loss').last:.4f}" for run in runs]
    assert list(rows["python"]) == expected
    assert list(rows["mean"]) == [f"{run.mean_held_out().last:.4f}" for run in runs]
    differences = {row[0]: row[1:] for row in run_tables.differences(runs).rows}
    assert differences == {"run.directory": ("one", "two"), "run.duration": ("300ba", "100ba")}
    assert not run_tables.domains_of_runs(runs[:1]).rows
    assert not run_tables.differences(runs[:1]).rows


def test_details_count_parameters_as_the_family_does(make_run):
    found = dict(run_tables.details(read_run(make_run())).rows)
    block = 4 * 192 * 192 + 3 * 192 * 512 + 2 * 192
    assert found["parameters"] == f"{2 * 512 * 192 + 6 * block + 192:,}"
    block = 4 * 96 * 96 + 3 * 96 * 256 + 2 * 96
    assert found["target parameters"].startswith(f"{2 * 512 * 96 + 4 * block + 96:,} (")
    assert found["data"] == "data/sample, rows of 256"


def test_what_is_not_a_run_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run directory"):
        write_report([])
    with pytest.raises(UserError, match="expected a run directory"):
        write_report([tmp_path])
    with pytest.raises(UserError, match="found no directory"):
        write_report([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.json", '{"source": ', "not a whole manifest of a run"),
        ("config.yaml", "run: [", "not valid YAML"),
        ("config.yaml", "- a\n- b\n", "expected a recipe"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(make_run, name, content, message):
    directory = make_run()
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report([directory])
    assert not (directory / "report.html").exists()
    assert not (directory / "report").exists()


def test_a_page_that_cannot_be_written_is_refused(make_run, tmp_path):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match="found a directory"):
        write_report([make_run()], tmp_path / "folder.html")


def test_the_command_prints_the_page_and_refuses_other_directories(make_run, capsys):
    directory = make_run()
    for needless in ("metrics.jsonl", "manifest.json", "masks/ba0.safetensors"):
        (directory / needless).unlink()
    (directory / "masks/ba300.safetensors").unlink()
    assert main(["report", str(directory)]) == 0
    assert f"{directory}/report.html" in capsys.readouterr().out
    assert main(["report", str(directory / "masks")]) == 2
    assert "expected a run directory" in capsys.readouterr().err
