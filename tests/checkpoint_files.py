"""Checkpoints that tests change, with manifests that say so, or do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmshearing.checkpoints.layout import FILES, FORMAT, manifest_of
from llmshearing.checksums import SEAL, record_files, sealed


def write_manifest(checkpoint: Path, **entries: Any) -> None:
    """Write the manifest that the checkpoint's files as they are would have."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())
    records = record_files({str(f.relative_to(checkpoint.parent)): f for f in files})
    manifest = {**entries, "format": FORMAT, FILES: records}
    manifest_of(checkpoint).write_text(json.dumps(sealed(manifest)))


def edit_manifest(checkpoint: Path, **entries: Any) -> None:
    """Change entries of a manifest, and record the files as they are."""
    manifest = json.loads(manifest_of(checkpoint).read_text())
    manifest.pop(SEAL, None)
    write_manifest(checkpoint, **{**manifest, **entries})


def flip_bit(file: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file; its size stays."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ (1 << bit)]))
