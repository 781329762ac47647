"""Work in several processes."""

import functools

import pytest

from llmshearing.errors import UserError
from llmshearing.preparation import workers


def add(about, item):
    return about, item + 1


def refuse(about, item):
    raise UserError(f"cannot work on {item} with {about}")


def test_work_reaches_other_processes_without_a_file(tmp_path, monkeypatch):
    """A file that holds a pickle could be replaced by another user of a shared folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert sorted(workers.results(2, functools.partial(add, "x"), [1, 2, 3])) == [
        ("x", 2),
        ("x", 3),
        ("x", 4),
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_a_worker_is_one_message(processes):
    with pytest.raises(UserError, match="cannot work on 1 with 7"):
        list(workers.results(processes, functools.partial(refuse, 7), [1]))
