"""Which documents go to which split: what the units hold, held-out text, and the cuts.

A document that any domain holds out is trained on in none: first each domain's held-out documents
are found, then the same text is left out of what the other domains train on. Texts are compared by
their hash, so a text that differs in one byte is another one.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmshearing.errors import UserError
from llmshearing.preparation import fingerprints, inputs, sources, splits, units
from llmshearing.preparation import work_plan as plans

log = logging.getLogger(__name__)

SHOWN = 5  # bad documents shown in a message
NONE = np.zeros(0, np.uint64)
COUNTED = ("lines", "documents", "tokenised", "tokens", "bytes", "bad", "bad_bytes", "empty")
FILE_COUNTED = ("read_bytes", "bad_bytes", "documents")


@dataclass
class DomainSelection:
    """What the units of a domain hold, and what each split takes of it."""

    counts: Counter[str] = field(default_factory=Counter)  # sums of the units' counts
    # tokens of each pool by hash bucket [buckets], without excluded documents
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)  # of bad documents
    # bytes read, bytes lost and good documents of each raw file
    files: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    # values found in the fields of `where`, as JSON
    values: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    digests: dict[str, str] = field(default_factory=dict)  # of the raw files
    # sorted hashes of documents of the train pool that are held out elsewhere, and their number
    excluded: np.ndarray = field(default_factory=lambda: NONE)
    repeats: int = 0
    cuts: list[tuple[str, splits.Cut]] = field(default_factory=list)  # pool, and what a split takes


Found = Mapping[str, DomainSelection]  # by domain


def select(plan: plans.Plan) -> dict[str, DomainSelection]:
    """Decide which documents of the finished units each split takes, unless too many are bad."""
    held_out = _sorted(
        file.hashes
        for domain in plan.domains
        if "eval" in domain.pools
        for _, file in unit_files(plan, domain.name, "eval")
    )
    found = {domain.name: _count(plan, domain, held_out) for domain in plan.domains}
    _refuse_bad(plan, found)
    _refuse_lost_bytes(plan, found)
    _refuse_unmatched(plan, found)
    ends = {}  # of the buckets that a domain holds out
    for domain in plan.domains:
        first = splits.cut(found[domain.name].tokens["train"], domain.asks["train"])[:1]
        first = [cut for cut in first if cut.split == "eval"]
        ends[domain.name] = first[0].end if first else 0
        found[domain.name].cuts = [("train", cut) for cut in first]
    if len(plan.domains) > 1:
        held_out = _sorted(
            file.hashes[splits.buckets(file.hashes) < ends[domain.name]]
            for domain in plan.domains
            if ends[domain.name]
            for _, file in unit_files(plan, domain.name, "train")
        )
        for domain in plan.domains:
            _exclude(plan, domain.name, found[domain.name], ends[domain.name], held_out)
    for domain in plan.domains:
        selection = found[domain.name]
        asks = [ask for ask in domain.asks["train"] if ask.split != "eval"]
        rest = splits.cut(selection.tokens["train"], asks, ends[domain.name])
        selection.cuts += [("train", cut) for cut in rest]
        if "eval" in domain.pools:
            held = splits.cut(selection.tokens["eval"], domain.asks["eval"])
            selection.cuts = [("eval", cut) for cut in held] + selection.cuts
    return found


def wider_bounds(plan: plans.Plan, found: Found) -> dict[str, int]:
    """Return larger bounds for the domains of which too few documents were chosen.

    They follow from the tokens that the chosen documents turned out to have.
    """
    wider = {}
    for domain in plan.domains:
        cuts = [cut for pool, cut in found[domain.name].cuts if pool == "train"]
        keep = plan.bounds.get(domain.name, units.WHOLE)
        if keep < units.WHOLE and any(cut.lacks for cut in cuts):
            asked = sum(cut.asked or 0 for cut in cuts)
            held = int(found[domain.name].tokens["train"].sum())
            part = keep / units.WHOLE * asked / held * plan.recipe.oversample if held else 1.0
            next_bucket = keep + splits.bound_of(1 / splits.BUCKETS)
            wider[domain.name] = max(splits.bound_of(part), next_bucket)
            counts = f"{held:,} tokens, the budgets ask for {asked:,}"
            log.info("%s: the chosen documents have %s: choosing more", domain.name, counts)
    return wider


def refuse_missing(plan: plans.Plan, found: Found) -> None:
    """Refuse splits that lack more of their budget than allowed, now that all is tokenised."""
    cuts = [(name, cut) for name, domain in found.items() for _, cut in domain.cuts if cut.lacks]
    if not cuts:
        return
    allowed = plan.recipe.missing_tokens
    listed = "".join(
        f"\n  {cut.split} of {name}: {cut.tokens:,} of {cut.asked:,} tokens" for name, cut in cuts
    )
    if any(cut.lacks > allowed * (cut.asked or 0) for _, cut in cuts):
        raise UserError(
            f"found less text than {len(cuts)} budgets ask for, expected at least "
            f"{1 - allowed:.2%} of each (missing_tokens): give more text, lower the budgets, or "
            f"set missing_tokens=1 to take what there is; finished pieces are kept{listed}"
        )
    log.warning("the text has less than the budgets ask for (missing_tokens):%s", listed)


def unit_files(
    plan: plans.Plan, domain: str, pool: str
) -> Iterator[tuple[units.Unit, units.UnitFile]]:
    """Open the units of a pool of a domain, in the order of the text."""
    for unit in plan.units:
        if unit.domain == domain and unit.pool == pool:
            path = plan.settings.folder / unit.file_name
            yield unit, units.UnitFile.open(path, plan.settings.dtype)


def _sorted(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([NONE, *parts]))


def _count(plan: plans.Plan, domain: plans.Domain, held_out: np.ndarray) -> DomainSelection:
    """Add up the units of a domain, and exclude what the held-out files of any domain hold."""
    selection = DomainSelection()
    repeated = []
    for pool in sorted(domain.pools):
        tokens = np.zeros(splits.BUCKETS, np.int64)
        lines: Counter[str] = Counter()  # of the file before the unit
        chunks: dict[str, list[str]] = defaultdict(list)
        for unit, file in unit_files(plan, domain.name, pool):
            head, name = file.head, unit.source.name
            selection.counts.update({key: head[key] for key in COUNTED})
            selection.files[name].update({key: head[key] for key in FILE_COUNTED})
            for key, values in head["values"].items():
                selection.values[key].update(values)
            where = {"domain": domain.name, "file": name}
            selection.problems += [
                {**where, "line": lines[name] + line, "problem": problem}
                for line, problem in head["problems"]
            ]
            lines[name] += head["lines"]
            chunks[name] += head["chunks"]
            out = splits.contains(held_out if pool == "train" else NONE, file.hashes)
            repeated.append(file.hashes[out])
            np.add.at(tokens, splits.buckets(file.hashes[~out]), file.lengths[~out])
        selection.tokens[pool] = tokens
        selection.digests |= {name: fingerprints.digest(hashed) for name, hashed in chunks.items()}
    selection.repeats = sum(map(len, repeated))
    selection.excluded = _sorted(repeated)
    return selection


def _exclude(
    plan: plans.Plan, domain: str, selection: DomainSelection, end: int, held_out: np.ndarray
) -> None:
    """Exclude held-out text of other domains from what a domain trains on, from bucket `end` on."""
    repeated = [selection.excluded]
    for _, file in unit_files(plan, domain, "train") if len(held_out) else ():
        buckets = splits.buckets(file.hashes)
        out = (buckets >= end) & splits.contains(held_out, file.hashes)
        out &= ~splits.contains(selection.excluded, file.hashes)
        np.subtract.at(selection.tokens["train"], buckets[out], file.lengths[out])
        repeated.append(file.hashes[out])
        selection.repeats += int(out.sum())
    selection.excluded = _sorted(repeated)


def too_many_bad(
    plan: plans.Plan, bad: int, total: int, problems: list[dict[str, Any]]
) -> UserError:
    """Return an error that names bad documents and says what to do."""
    shown = [p for p in problems if p["problem"] != units.EMPTY][:SHOWN]
    listed = "".join(f"\n  {p['file']}:{p['line']}: {p['problem']}" for p in shown)
    return UserError(
        f"found {bad:,} bad of {total:,} documents, expected at most "
        f"{plan.recipe.bad_documents:.2%} (bad_documents): repair them or allow more{listed}"
    )


def _refuse_bad(plan: plans.Plan, found: Found) -> None:
    bad = sum(domain.counts["bad"] for domain in found.values())
    total = bad + sum(domain.counts["documents"] for domain in found.values())
    if bad > plan.recipe.bad_documents * total:
        problems = [problem for domain in found.values() for problem in domain.problems]
        raise too_many_bad(plan, bad, total, problems)


def _refuse_lost_bytes(plan: plans.Plan, found: Found) -> None:
    lost = {}
    for domain in found.values():
        first = {p["file"]: p for p in reversed(domain.problems) if p["problem"] != units.EMPTY}
        for name, file in domain.files.items():
            part = file["bad_bytes"] / max(1, file["read_bytes"])
            if part > plan.recipe.bad_bytes or (part and not file["documents"]):
                bad = first.get(name, {"line": "?", "problem": "not listed"})
                lost[name] = f"{part:.1%} is lost, first at line {bad['line']}: {bad['problem']}"
    if lost:
        raise UserError(
            f"found too many bytes in bad documents in {len(lost):,} files, expected at most "
            f"{plan.recipe.bad_bytes:.1%} of each file (bad_bytes) and some good documents: "
            f"repair or remove the files{inputs.listed(lost)}"
        )


def _refuse_unmatched(plan: plans.Plan, found: Found) -> None:
    problems = [
        f"\n  domains.{domain.name}.where: {problem}"
        for domain in plan.domains
        for problem in _unmatched(domain.reads, found[domain.name])
    ]
    if problems:
        raise UserError(
            "found filters that match nothing, expected values that occur, in quotes if they are "
            f"text: correct `where`{''.join(problems)}"
        )


def _unmatched(reads: sources.Reads, found: DomainSelection) -> list[str]:
    problems = []
    for path, wanted in reads.where:
        name, values = ".".join(path), found.values[".".join(path)]
        if missing := [value for value in wanted if value not in values]:
            others = sorted(values.difference(wanted))[: sources.EXAMPLES]
            problems.append(
                f"no document has `{name}` equal to {' or '.join(missing)}; other values are "
                f"{', '.join(others) or 'none'}{' (no such field)' if others == ['null'] else ''}"
            )
    if reads.where and not problems and not found.counts["documents"] + found.counts["bad"]:
        problems.append("no document passes all of the filters")
    return problems
