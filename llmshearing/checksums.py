"""Sizes and checksums of files: recorded in a manifest, compared before the files are used.

XXH3 (128 bits) detects damage. It does not stop an attacker, who can rewrite the manifest too;
against that no reader unpickles anything but tensors and plain values.

One core hashes about 9 GB/s from memory, so the disk sets the pace: checking a checkpoint costs one
sequential read of its files. Each rank of a run reads its share of the files, so the time of a
sharded checkpoint falls with the number of ranks; the one file of a full checkpoint is read by one
rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch import distributed as dist

from llmshearing.errors import UserError

BYTES, DIGEST, SEAL = "bytes", "xxh3_128", "checksum"
BUFFER_BYTES = 1 << 20


def record_files(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Size and checksum of files. All ranks call it.

    Args:
        files: by name, those that this rank reads.

    Returns:
        `{name: {"bytes": N, "xxh3_128": HEX}}` of the files of all ranks.

    Raises:
        UserError: on every rank, if any rank cannot read a file.
    """
    mine: dict[str, Any] = {}
    for name, file in files.items():
        try:
            mine[name] = {BYTES: file.stat().st_size, DIGEST: _digest(file)}
        except OSError as error:
            mine[name] = f"cannot read {file}: {error.strerror or error}"
    shares: list[Any] = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
    found = {name: record for share in shares for name, record in share.items()}
    failed = [record for record in found.values() if isinstance(record, str)]
    if failed:
        raise UserError(f"{'; '.join(failed)}. Put the file back or check the disk")
    return found


def check_files(folder: Path, recorded: Mapping[str, Any], manifest: Path, remedy: str) -> None:
    """Compare files with their records. All ranks call it; each reads its share.

    Args:
        folder: what the names are relative to.
        recorded: from `record_files`.
        manifest: the file that holds the records, for the message.
        remedy: what to do about a damaged file, for the message.

    Raises:
        UserError: on every rank, if a file is missing or has changed since it was written.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    names = sorted(recorded)
    found = record_files({name: folder / name for name in names[rank::ranks]})
    changed = [str(folder / name) for name in names if found[name] != recorded[name]]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: the checksum is not the one in {manifest.name}, so the "
            f"content has changed since it was written. {remedy}"
        )


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as JSON has it, with the checksum of its own content."""
    plain = json.loads(json.dumps(manifest))
    return {**plain, SEAL: _seal(plain)}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest's content is what its checksum says."""
    return manifest.get(SEAL) == _seal({k: v for k, v in manifest.items() if k != SEAL})


def _seal(plain: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(plain, sort_keys=True).encode())


def _digest(file: Path) -> str:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
