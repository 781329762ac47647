"""Memory does not grow with the file, not even with a document of 50 MB."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus import PREP, text

from llmshearing.data.tree import DataTree

LIMIT_MB = 600


def peaks(session: int) -> dict[int, float]:
    """Give the peak resident memory of the live processes of a session, in MB."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    lines = (folder / "status").read_text().splitlines()
                    line = next(line for line in lines if line.startswith("VmHWM"))
                    found[int(folder.name)] = int(line.split()[1]) / 1000
            except (OSError, StopIteration):
                continue
    return found


@pytest.mark.slow
def test_two_gigabytes_with_one_giant_document(config, source, shared, tmp_path):
    size = int(os.environ.get("LLMSHEARING_MEMORY_TEST_MB", "2000")) * 1_000_000
    files = sorted(shared.glob("data/redpajama-sample/*/train-*.jsonl"))
    lines = [line for path in files for line in path.read_bytes().split(b"\n") if line]
    lines = [line for line in lines if json.loads(line)["text"].strip()]
    giant = (" ".join(json.loads(line)["text"] for line in lines) * 6)[:50_000_000]
    path = source / "web" / "large.jsonl"
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(b"\n".join(lines) + b"\n")
            if giant and file.tell() > size // 2:
                file.write(json.dumps({"text": giant}, ensure_ascii=False).encode() + b"\n")
                giant = ""
    settings = {
        **json.loads(config.read_text()),
        "tokenizer": str(shared / "tokenizers" / "llama2"),
        "domains": {"web": {"files": "web/large.jsonl"}},
        "splits": {"eval": {"share": 0.01}, "continue": {"share": 1}},
        "sequence_length": 4096,
        "processes": 2,
    }
    for name in ("unit_bytes", "shard_bytes"):  # as they are by default
        settings.pop(name)
    config.write_text(json.dumps(settings))
    command = [sys.executable, str(PREP / "prepare.py"), str(config)]
    run = subprocess.Popen(command, start_new_session=True)
    highest: dict[int, float] = {}
    begin = time.monotonic()
    while run.poll() is None:
        for process, peak in peaks(run.pid).items():
            highest[process] = max(highest.get(process, 0), peak)
        time.sleep(0.05)
    sys.stderr.write(f"peaks in MB: {highest}, {time.monotonic() - begin:.0f} s\n")
    assert run.returncode == 0
    assert len(highest) >= 3
    assert max(highest.values()) < LIMIT_MB
    tree = DataTree.open(tmp_path / "tree")
    assert sum(split["web"].tokens for split in tree.splits.values()) > size / 6


def test_a_document_longer_than_a_unit_is_read_whole(config, source, tmp_path):
    from corpus import prepare, write_jsonl

    write_jsonl(source / "web" / "long.jsonl", [text(1, 3000), text(2, 20_000), text(3, 10)])
    assert prepare(config) == 0
    assert prepare(config, "unit_bytes=16MiB", f"output={tmp_path / 'other'}") == 0
    ours, other = (DataTree.open(tmp_path / name) for name in ("tree", "other"))
    assert ours.manifest["splits"] == other.manifest["splits"]
