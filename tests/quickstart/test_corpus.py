"""Text found on this machine, without repeats."""

import json

import pytest

from llmshearing.quickstart import corpus
from llmshearing.quickstart.corpus import MOST_REPEATED, RUN_WORDS, WORD, new_passages

SIZE = 60_000
LICENCE = "Permission is hereby granted, free of charge, to any person obtaining a copy of this"


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
        runs = [tuple(words[i : i + 4 * RUN_WORDS]) for i in range(len(words) - 4 * RUN_WORDS)]
        assert sum(run in seen for run in runs) <= MOST_REPEATED * max(len(runs), 1) / 2
        seen.update(runs)


def test_documents_are_written_as_json_lines(domains, tmp_path):
    corpus.write(domains, tmp_path)
    for name, documents in domains.items():
        lines = (tmp_path / name / "text.jsonl").read_text().split("\n")
        assert [json.loads(line)["text"] for line in lines[:-1]] == documents


SOURCE = '''"""Module.

Details."""

class A:
    def f(self):
        """F.

        Twice."""

def g():
    """Short."""
'''


def test_docstrings_of_more_than_a_line_are_taken():
    assert corpus.docstrings(SOURCE) == "Module.\n\nDetails.\n\nF.\n\nTwice."
    assert corpus.docstrings("def (") == ""


def test_a_passage_is_recognised_when_wrapped_differently():
    seen = set()
    assert new_passages(LICENCE, seen) == LICENCE
    again = LICENCE.upper().replace(" FREE", "\n   free")
    text = f"An introduction that nobody wrote before and that has words enough.\n\n{again}"
    assert new_passages(text, seen) == text.split("\n\n")[0]


def test_a_passage_is_recognised_with_a_few_words_changed():
    seen = set()
    new_passages(LICENCE, seen)
    assert new_passages(LICENCE.replace("this", "that"), seen) == ""


def test_a_passage_that_is_mostly_new_is_kept():
    seen = set()
    new_passages(LICENCE, seen)
    text = " ".join(LICENCE.split()[:9]) + " which was the beginning of a story of ten new words"
    assert new_passages(text, seen) == text


def test_short_passages_are_always_kept():
    seen = set()
    text = "Returns\n-------\n\nx : int"
    assert new_passages(text, seen) == new_passages(text, seen) == text
