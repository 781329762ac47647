"""Checkpoints that tests change, with manifests that say so, or do not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmshearing.checkpoints.layout import FOLDER, checkpoint_path, manifest_of
from llmshearing.checkpoints.manifest import FORMAT, RunManifest
from llmshearing.checkpoints.tensors import open_checkpoint
from llmshearing.checksums import record_files


def write_manifest(checkpoint: Path, manifest: RunManifest) -> None:
    """Write a manifest that records a checkpoint's files as they are."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())
    records = record_files({str(f.relative_to(checkpoint.parent)): f for f in files})
    replace(manifest, files=records, format=FORMAT).write(manifest_of(checkpoint))


def edit_manifest(checkpoint: Path, **entries: Any) -> None:
    """Change entries of a manifest, and record the files as they are."""
    write_manifest(checkpoint, replace(RunManifest.read(manifest_of(checkpoint)), **entries))


def flip_bit(file: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file; its size stays."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ (1 << bit)]))


def take_over(run: Path, other: Path, step: int, kind: str) -> None:
    """Give a new run directory one checkpoint of another."""
    path = checkpoint_path(run, step, kind)
    (other / FOLDER).mkdir(parents=True)
    shutil.copy(manifest_of(path), other / FOLDER)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, other / FOLDER / path.name)


def equal_tensors(one: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs hold the same tensors, to the bit."""
    left, right = open_checkpoint(one), open_checkpoint(other)
    assert left.names() == right.names()
    return all(torch.equal(left.read(name), right.read(name)) for name in left.names())
