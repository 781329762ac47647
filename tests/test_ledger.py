"""Results that outlive a killed process."""

import threading

from llmshearing.ledger import Ledger


def test_results_are_measured_once(tmp_path):
    measured = []

    def measure(key):
        measured.append(key)
        return {"loss": 0.1 + len(key)}

    first = Ledger(tmp_path).results("t", ["a", "bb"], measure)
    again = Ledger(tmp_path).results("t", ["bb", "a", "ccc"], measure)
    assert measured == ["a", "bb", "ccc"]
    assert list(again) == ["bb", "a", "ccc"]
    assert {key: again[key] for key in first} == first


def test_an_incomplete_last_line_is_measured_again_and_spoils_no_other(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.results("t", ["a", "b"], len)
    file = tmp_path / "scores-0.jsonl"
    file.write_bytes(file.read_bytes()[:-4])
    assert Ledger(tmp_path).read() == {"a": 1}
    Ledger(tmp_path).results("t", ["a", "b", "c"], len)
    assert Ledger(tmp_path).read() == {"a": 1, "b": 1, "c": 1}


def test_ranks_share_the_work_and_all_get_every_result(tmp_path):
    keys, measured, got = [str(n) for n in range(7)], {0: [], 1: []}, {}

    def run(rank):
        def measure(key):
            measured[rank].append(key)
            return int(key)

        got[rank] = Ledger(tmp_path, rank, 2).results("t", keys, measure)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert got[0] == got[1] == {key: int(key) for key in keys}
    assert measured == {0: keys[::2], 1: keys[1::2]}
