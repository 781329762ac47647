"""Sizes and checksums of files: recorded in a manifest, compared before the files are used.

XXH3 (128 bits) detects damage. It does not stop an attacker, who can rewrite the manifest too;
against that, no reader unpickles anything but tensors and plain values.

One core hashes about 9 GB/s from memory, so the disk sets the pace: checking a checkpoint costs one
sequential read of its files. Each rank of a run reads its share of the files, so the time of a
sharded checkpoint falls with the number of ranks; the one file of a full checkpoint is read by one
rank.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from llmshearing.errors import UserError

BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Size of a file in bytes, and its checksum; manifests of format 0 have no checksums."""

    bytes: int
    xxh3_128: str | None = None


def record_file(file: Path) -> FileRecord:
    """Size and checksum of a file."""
    return FileRecord(file.stat().st_size, _digest(file))


def record_files(files: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Size and checksum of files by name; each rank gives those it reads. All ranks call it.

    Returns:
        The records of all ranks' files.

    Raises:
        UserError: on every rank, if any rank cannot read a file.
    """
    mine: dict[str, FileRecord] = {}
    failed: list[str] = []
    for name, file in files.items():
        try:
            mine[name] = record_file(file)
        except OSError as error:
            failed.append(f"cannot read {file}: {error.strerror or error}")
    shares: list[Any] = [(mine, failed)]
    if (ranks := _ranks()[1]) > 1:
        shares = [None] * ranks
        sys.modules["torch.distributed"].all_gather_object(shares, (mine, failed))
    failed = [problem for _, problems in shares for problem in problems]
    if failed:
        raise UserError(f"{'; '.join(failed)}. Put the file back or check the disk")
    return {name: record for records, _ in shares for name, record in records.items()}


def record_shared(files: Mapping[str, Path]) -> dict[str, FileRecord]:
    """Size and checksum of files that every rank can read. All ranks call it; each reads its share.

    Raises:
        UserError: on every rank, if any rank cannot read a file.
    """
    rank, ranks = _ranks()
    return record_files({name: files[name] for name in sorted(files)[rank::ranks]})


def check_files(
    folder: Path, recorded: Mapping[str, FileRecord], manifest: Path, remedy: str
) -> None:
    """Compare files in a folder with their records. All ranks call it; each reads its share.

    `manifest` has the records; `remedy` says what to do about a damaged file.

    Raises:
        UserError: on every rank, if a file is missing or has changed since it was written.
    """
    found = record_shared({name: folder / name for name in recorded})
    changed = [str(folder / name) for name in sorted(recorded) if found[name] != recorded[name]]
    if changed:
        raise UserError(
            f"{', '.join(changed)}: the checksum is not the one in {manifest.name}, so the "
            f"content has changed since it was written. {remedy}"
        )


def _ranks() -> tuple[int, int]:
    """This rank and how many there are; without torch, which the caller need not load, one."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _digest(file: Path) -> str:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
