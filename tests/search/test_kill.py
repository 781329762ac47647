"""A search that is killed and started again, or that several ranks share, gives the same result."""

import json
import time

import pytest
from runs import log_file, start_ranks

from llmshearing.cli import main


def arguments(model, tree, out):
    budget = ["parameters=20K", "multiple_of.hidden=4", "multiple_of.intermediate=8"]
    given = ["search", model, "--data", tree, "--out", out, "--target", *budget]
    numbers = ["--values", 6, "--rows", 2, "--importance-rows", 8]
    return list(map(str, [*given, *numbers]))


@pytest.fixture(scope="module")
def expected(tiny_model, tiny_tree, tmp_path_factory):
    """The results of a search that one process finished."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert not main(arguments(tiny_model, tiny_tree, out))
    return results(out)


def results(out):
    return [(out / name).read_bytes() for name in ("results.json", "table.txt", "shapes.png")]


def scored(out):
    files = out.glob("scores-*.jsonl")
    return [json.loads(line)["key"] for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_search_resumes_to_the_same_result(
    expected, tiny_model, tiny_tree, tmp_path, ranks
):
    out = tmp_path / "out"
    given = arguments(tiny_model, tiny_tree, out)
    for least in (1, 12):  # of 3 batches without layers and 19 candidates
        processes = start_ranks(ranks, tmp_path / "logs", given, run=main)
        wait_until(lambda least=least: out.exists() and len(scored(out)) >= least, processes)
        for process in processes:
            process.kill()
            process.join()
        assert not (out / "results.json").exists()
    before = scored(out)
    processes = start_ranks(ranks, tmp_path / "logs", given, run=main)
    for rank, process in enumerate(processes):
        process.join(60)
        assert process.exitcode == 0, log_file(tmp_path / "logs", rank).read_text()
    assert results(out) == expected
    after = scored(out)
    assert set(before) < set(after)
    assert len(after) == len(set(after))  # nothing was measured twice


def wait_until(reached, processes):
    deadline = time.monotonic() + 60
    while not reached() and any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.005)
