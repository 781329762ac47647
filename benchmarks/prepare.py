"""Data preparation compared with what a user would write, and with the encoders alone.

    python benchmarks/prepare.py --text FOLDER --tokenizer TOKENIZER [--tokenizer ...] [--repeat 20]

`FOLDER` holds a folder of JSON Lines a domain. The fast ones get the text `--repeat` times over, so
that what is measured is the work and not the start of Python; `--repeat 1` shows the start as well.
Each time over, every document begins at another word, so that no document comes twice: an encoder
that remembers what it has seen gains only from words, as it does on other text.
Encoders get the documents in memory and do nothing else. All in one run, on the same cores; the
fast ones `--rounds` times, in turn, of which the median counts. Beside the time by the clock stands
the processor time over all threads and processes, which other work disturbs less. The command's
start (three Pythons, the tokenizer in each) is what it takes for one document a domain.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SEQUENCE_LENGTH = 1024

_encode: Callable[[list[str]], int] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, action="append", required=True)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    for tokenizer in given.tokenizer:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            compare(given.text, tokenizer, Path(folder), given)


def compare(text: Path, tokenizer: Path, folder: Path, given: argparse.Namespace) -> None:
    repeat, cores = given.repeat, given.cores
    domains = copy_text(text, folder / "text", repeat)
    documents, once = read(folder / "text"), read(folder / "once")
    size = sum(len(document.encode()) for document in once)
    print(
        f"\n{tokenizer.name}: {len(once):,} documents, {size / 1e6:,.1f} MB of text, {cores} cores"
    )
    print(f"{'':42} text  seconds  M tokens/s    MB/s  processor s  M tokens/s per core")
    alone: dict[str, Took] = {}
    fast: dict[str, Callable[[], Took]] = {}
    tokens = 0
    for name, slow, run in encoders(tokenizer, cores):
        took, tokens, right = run(once)
        if slow or not right:
            show(f"(b) {name} alone" + ("" if right else ": OTHER IDS"), took, 1, tokens, size)
        if right and slow:
            alone[name] = took
        elif right:
            fast[name] = lambda run=run: run(documents)[0]
    whole, start = "this project, whole command", "of it the start"
    fast[whole] = lambda: timed(lambda: prepare(tokenizer, folder, "text", domains, cores))
    fast[start] = lambda: timed(lambda: prepare(tokenizer, folder, "few", domains, cores))
    rounds = [{name: run() for name, run in fast.items()} for _ in range(given.rounds)]
    took = {name: Took.median([one[name] for one in rounds]) for name in fast}
    for name in fast:
        if name == start:
            print(f"{name:47} {took[name].wall:8.2f} {'':19}  {took[name].cpu:11.2f}")
            continue
        what = name if name == whole else f"(b) {name} alone"
        show(what, took[name], repeat, tokens * repeat, size)
    loop = timed(lambda: python_loop(tokenizer, folder))
    show("(a) Python loop, NumPy, MDSWriter", loop, 1, tokens, size)
    ours, begin = took.pop(whole).each(repeat), took.pop(start).each(repeat)
    show_ratio("(a)", loop, ours)
    alone |= {name: one.each(repeat) for name, one in took.items()}
    for name, other in sorted(alone.items(), key=lambda one: one[1].wall):
        show_ratio(f"(b) {name}", other, ours)
        show_ratio(f"(b) {name}, the start left out", other, ours.without(begin))
    ratios = [
        min(one[name].wall for name in fast if name not in (whole, start)) / one[whole].wall
        for one in rounds
    ]
    print(f"over the fastest of (b), round by round: {', '.join(f'{x:.2f}' for x in ratios)}")


def read(folder: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*/text.jsonl"))
        for line in path.open(encoding="utf-8")
    ]


def show(name: str, took: Took, times: int, tokens: int, size: int) -> None:
    rates = f"{tokens / took.wall / 1e6:11.2f} {size * times / took.wall / 1e6:7.1f}"
    rates += f"  {took.cpu:11.2f}  {tokens / took.cpu / 1e6:10.2f}"
    print(f"{name:42} x{times:<3} {took.wall:8.2f} {rates}", flush=True)


def show_ratio(name: str, other: Took, ours: Took) -> None:
    by = (
        f"{other.wall / ours.wall:5.2f} by the clock, {other.cpu / ours.cpu:5.2f} by processor time"
    )
    print(f"throughput over {name}: {by}", flush=True)


def timed(work: Callable[[], object]) -> Took:
    begin, before = time.perf_counter(), processor_seconds()
    work()
    return Took(time.perf_counter() - begin, processor_seconds() - before)


def processor_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def copy_text(text: Path, folder: Path, repeat: int) -> list[str]:
    """Write each domain's documents `repeat` times over into one file, and once next to it."""
    domains = sorted(path.name for path in text.iterdir() if path.is_dir())
    for domain in domains:
        data = b"".join(path.read_bytes() for path in sorted((text / domain).glob("*.jsonl")))
        kept = [json.loads(line)["text"] for line in data.splitlines()]
        kept = [document for document in kept if document.strip()]
        few = folder.with_name("few") / domain / "text.jsonl"
        few.parent.mkdir(parents=True)
        longest = max(kept, key=len) * 2  # more than a row
        few.write_text(json.dumps({"text": longest[: 16 * SEQUENCE_LENGTH]}) + "\n")
        for place, times in ((folder, repeat), (folder.with_name("once"), 1)):
            (place / domain).mkdir(parents=True)
            with (place / domain / "text.jsonl").open("w", encoding="utf-8") as file:
                for time_over in range(times):
                    for document in kept:
                        turned = turn(document, time_over / times)
                        file.write(json.dumps({"text": turned}, ensure_ascii=False) + "\n")
    return domains


def turn(document: str, part: float) -> str:
    """The document from the word at `part` of its length on; what stood before comes last."""
    place = document.find(" ", int(len(document) * part)) if part else 0
    return document if place < 1 else document[place:] + document[:place]


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of all processors together."""

    wall: float
    cpu: float

    def each(self, times: int) -> Took:
        """Give the time of one of several rounds."""
        return Took(self.wall / times, self.cpu / times)

    def without(self, other: Took) -> Took:
        """Give the time less that of another."""
        return Took(self.wall - other.wall, self.cpu - other.cpu)

    @classmethod
    def median(cls, rounds: list[Took]) -> Took:
        """Give the median of both times."""
        return cls(*(statistics.median(times) for times in zip(*map(astuple, rounds), strict=True)))


Run = Callable[[list[str]], tuple[Took, int, bool]]


def encoders(tokenizer: Path, cores: int) -> Iterator[tuple[str, bool, Run]]:
    """Give the encoders that are installed, whether they are slow, and their fastest way."""
    model = tokenizer / "tokenizer.model"
    converted = tokenizer / "tokenizer.json"
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def checked(encode: Callable[[list[str]], list]) -> Run:
        def run(documents: list[str]) -> tuple[Took, int, bool]:
            ids: list = []
            took = timed(lambda: ids.extend(encode(documents)))
            return took, sum(map(len, ids)), same(documents, ids, processor)

        return run

    yield (
        f"SentencePiece, {cores} threads",
        True,
        checked(lambda documents: processor.encode(documents, num_threads=cores)),
    )
    if converted.is_file():
        import tokenizers

        os.environ["RAYON_NUM_THREADS"] = str(cores)
        fast = tokenizers.Tokenizer.from_file(str(converted))

        def batch(documents: list[str]) -> list:
            parts = []
            for first in range(0, len(documents), 1000):  # all at once takes gigabytes
                encoded = fast.encode_batch_fast(
                    documents[first : first + 1000], add_special_tokens=False
                )
                parts += [one.ids for one in encoded]
            return parts

        yield "tokenizers, fast batch", True, checked(batch)
    if importlib.util.find_spec("kitoken"):
        yield (
            f"kitoken, {cores} processes",
            True,
            lambda documents: spread(kitoken, model, documents, cores),
        )
    if importlib.util.find_spec("gigatoken"):
        import gigatoken

        giga = gigatoken.Tokenizer.from_sentencepiece(model)

        def threads(documents: list[str]) -> tuple[Took, int, bool]:
            encoded: list = []
            took = timed(lambda: encoded.append(giga.encode_batch(documents, parallel=True)))
            return took, len(encoded[0].layout.content.data), True

        yield f"gigatoken, {cores} threads", False, threads
        for way, make in (("", gigatoken_batch), (", text by text", gigatoken_texts)):
            yield (
                f"gigatoken, {cores} processes{way}",
                False,
                lambda d, make=make: spread(make, model, d, cores),
            )


def same(documents: list[str], ids: list, processor: object) -> bool:
    """Compare with SentencePiece, on the documents of one repeat."""
    step = max(1, len(documents) // 4000)
    chosen = range(0, len(documents), step)
    return all(processor.encode(documents[i]) == list(ids[i]) for i in chosen)  # type: ignore[attr-defined]


def spread(
    make: Callable[[Path], Callable[[list[str]], int]],
    model: Path,
    documents: list[str],
    cores: int,
) -> tuple[Took, int, bool]:
    """Share the documents out among processes that already hold them; time the encoding alone."""
    halves = [documents[first::cores] for first in range(cores)]
    context = get_context("spawn")
    with ProcessPoolExecutor(cores, context, initializer=start, initargs=(make, model)) as pool:
        list(pool.map(hold, halves))
        results = list(pool.map(encode_held, range(cores)))
    took = Took(max(took.wall for took, _ in results), sum(took.cpu for took, _ in results))
    return took, sum(count for _, count in results), True


_held: list[str] = []


def start(make: Callable[[Path], Callable[[list[str]], int]], model: Path) -> None:
    global _encode  # noqa: PLW0603 - a process pool gives no other place for it
    _encode = make(model)


def hold(documents: list[str]) -> None:
    _held[:] = documents
    time.sleep(1)  # so that the other process takes the other part


def encode_held(_: int) -> tuple[Took, int]:
    encode = _encode
    assert encode is not None
    counts: list[int] = []
    took = timed(lambda: counts.append(encode(_held)))
    time.sleep(1)
    return took, counts[0]


def gigatoken_batch(model: Path) -> Callable[[list[str]], int]:
    import gigatoken

    giga = gigatoken.Tokenizer.from_sentencepiece(model)

    def encode(documents: list[str]) -> int:
        return len(giga.encode_batch(documents, parallel=False).layout.content.data)

    return encode


def gigatoken_texts(model: Path) -> Callable[[list[str]], int]:
    import gigatoken

    encode = gigatoken.Tokenizer.from_sentencepiece(model).backend.encode
    return lambda documents: sum(map(len, map(encode, documents)))


def kitoken(model: Path) -> Callable[[list[str]], int]:
    from kitoken import Kitoken

    encoder = Kitoken.from_file(str(model))
    return lambda documents: sum(len(encoder.encode(one, False)) for one in documents)


def prepare(tokenizer: Path, folder: Path, text: str, domains: list[str], cores: int) -> None:
    """Run the command as a user does, the start of Python included."""
    config = {
        "source": str(folder / text),
        "output": str(folder / "tree"),
        "tokenizer": str(tokenizer),
        "sequence_length": SEQUENCE_LENGTH,
        "domains": {domain: {"eval_files": f"{domain}/held.jsonl"} for domain in domains},
        "splits": {"continue": {"share": 1}},
        "processes": cores,
    }
    for domain in domains:
        held = {"text": f"held out of {domain} " * SEQUENCE_LENGTH}
        (folder / text / domain / "held.jsonl").write_text(json.dumps(held) + "\n")
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    shutil.rmtree(folder / "tree", ignore_errors=True)
    subprocess.run(
        [sys.executable, str(ROOT / "data_prep" / "prepare.py"), str(path)],
        check=True, capture_output=True,
    )  # fmt: skip


def python_loop(tokenizer: Path, folder: Path) -> None:
    """What one writes in a quarter of an hour: a loop over documents on one core."""
    import sentencepiece
    from streaming import MDSWriter

    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    column = {"tokens": f"ndarray:uint16:{SEQUENCE_LENGTH}"}
    for path in sorted((folder / "once").glob("*/text.jsonl")):
        out = folder / "loop" / path.parent.name
        with MDSWriter(out=str(out), columns=column) as writer, path.open(encoding="utf-8") as file:
            rest: list[int] = []
            for line in file:
                ids = model.encode(json.loads(line)["text"], add_bos=True, add_eos=True)
                rest += ids
                whole = len(rest) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
                rows = np.array(rest[:whole], np.uint16).reshape(-1, SEQUENCE_LENGTH)
                for row in np.stack(rows) if len(rows) else ():
                    writer.write({"tokens": row})
                rest = rest[whole:]


if __name__ == "__main__":
    main()
