"""Text found on this machine."""

import json

import pytest

from llmshearing.quickstart import corpus
from llmshearing.quickstart.duplicates import MOST_REPEATED, RUN_LENGTH, WORD

SIZE = 60_000


@pytest.fixture(scope="module")
def domains():
    return corpus.collect(SIZE)


def test_every_domain_has_the_text_asked_for(domains):
    assert set(domains) == {"packages", "reference", "python", "headers"}
    for documents in domains.values():
        assert SIZE <= sum(map(len, documents)) < SIZE + corpus.LONGEST_DOCUMENT
        assert all(len(text) >= corpus.SHORTEST_DOCUMENT for text in documents)


def test_the_same_installation_gives_the_same_text(domains):
    assert corpus.collect(SIZE) == domains


def test_no_document_repeats_another(domains):
    seen = set()
    for text in (text for documents in domains.values() for text in documents):
        words = WORD.findall(text.lower())
        runs = [tuple(words[i : i + 4 * RUN_LENGTH]) for i in range(len(words) - 4 * RUN_LENGTH)]
        assert sum(run in seen for run in runs) <= MOST_REPEATED * max(len(runs), 1) / 2
        seen.update(runs)


SOURCE = '''"""Module.

Told."""

class A:
    def f(self):
        """F.

        Twice."""

def g():
    """Short."""
'''


def test_docstrings_of_more_than_a_line():
    assert corpus.docstrings(SOURCE) == "Module.\n\nTold.\n\nF.\n\nTwice."
    assert corpus.docstrings("def (") == ""


def test_written_as_lines_of_json(domains, tmp_path):
    corpus.write(domains, tmp_path)
    for name, documents in domains.items():
        lines = (tmp_path / name / "text.jsonl").read_text().split("\n")
        assert [json.loads(line)["text"] for line in lines[:-1]] == documents
