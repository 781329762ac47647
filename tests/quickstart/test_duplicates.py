"""Passages that were seen before are left out."""

from llmshearing.quickstart.duplicates import Seen

LICENCE = "Permission is hereby granted, free of charge, to any person obtaining a copy of this"


def test_a_passage_wrapped_anew_is_known_again():
    seen = Seen()
    assert seen.without_repeats(LICENCE) == LICENCE
    again = LICENCE.upper().replace(" FREE", "\n   free")
    text = f"An introduction that nobody wrote before and that has words enough.\n\n{again}"
    assert seen.without_repeats(text) == text.split("\n\n")[0]


def test_a_passage_with_a_few_words_changed_is_known_again():
    seen = Seen()
    seen.without_repeats(LICENCE)
    assert seen.without_repeats(LICENCE.replace("this", "that")) == ""


def test_a_passage_that_is_mostly_new_stays():
    seen = Seen()
    seen.without_repeats(LICENCE)
    text = " ".join(LICENCE.split()[:9]) + " which was the beginning of a story of ten new words"
    assert seen.without_repeats(text) == text


def test_short_passages_always_stay():
    seen = Seen()
    text = "Returns\n-------\n\nx : int"
    assert seen.without_repeats(text) == seen.without_repeats(text) == text
