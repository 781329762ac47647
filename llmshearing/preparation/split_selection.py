"""Which documents go to which split: what the units hold, held-out text, and the cuts.

A document that any domain holds out is trained on in none: first each domain's held-out documents
are found, then the same text is left out of what the others train on. Texts are compared by their
hash, byte for byte; a text that differs in one character is another one.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
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


@dataclass
class DomainSelection:
    """What the units of a domain hold, and what each split takes of it.

    Attributes:
        counts: the sums of the units' counts.
        tokens: tokens by bucket of hashes and by pool, without those left out. [buckets]
        problems: file, line and problem of bad documents.
        files: bytes read and lost, and good documents, by file.
        values: values found in the fields of `where`, as JSON.
        digests: of the raw files, by name.
        excluded: hashes of the documents of the train pool that are held out elsewhere, sorted.
        repeats: number of these documents.
        cuts: pool and stretch of each split.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    digests: dict[str, str] = field(default_factory=dict)
    excluded: np.ndarray = field(default_factory=lambda: NONE)
    repeats: int = 0
    cuts: list[tuple[str, splits.Cut]] = field(default_factory=list)


def select(plan: plans.Plan) -> dict[str, DomainSelection]:
    """Decide which documents of the finished units each split takes, by domain.

    Raises:
        UserError: too many documents are bad.
    """
    given = [
        file.hashes
        for domain in plan.domains
        if "eval" in domain.pools
        for _, file in unit_files(plan, domain.name, "eval")
    ]
    held_out = _sorted(given)
    found = {domain.name: _count(plan, domain, held_out) for domain in plan.domains}
    _refuse_bad(plan, found)
    ends = {}  # of the buckets that a domain holds out
    for domain in plan.domains:
        first = splits.cut(found[domain.name].tokens["train"], domain.asks["train"])[:1]
        ends[domain.name] = first[0].end if first and first[0].split == "eval" else 0
        found[domain.name].cuts = [("train", cut) for cut in first if cut.split == "eval"]
    if len(plan.domains) > 1:
        held_out = _sorted(
            file.hashes[splits.buckets(file.hashes) < ends[domain.name]]
            for domain in plan.domains
            if ends[domain.name]
            for _, file in unit_files(plan, domain.name, "train")
        )
        for domain in plan.domains:
            _leave_out(plan, domain.name, found[domain.name], ends[domain.name], held_out)
    for domain in plan.domains:
        selection = found[domain.name]
        asks = [ask for ask in domain.asks["train"] if ask.split != "eval"]
        rest = splits.cut(selection.tokens["train"], asks, ends[domain.name])
        selection.cuts += [("train", cut) for cut in rest]
        if "eval" in domain.pools:
            held = splits.cut(selection.tokens["eval"], domain.asks["eval"])
            selection.cuts = [("eval", cut) for cut in held] + selection.cuts
    return found


def wider_bounds(plan: plans.Plan, found: Mapping[str, DomainSelection]) -> dict[str, int]:
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
            log.info(
                "%s: the documents chosen have %s tokens, the budgets ask for %s: choosing more",
                domain.name, f"{held:,}", f"{asked:,}",
            )  # fmt: skip
    return wider


def refuse_missing(plan: plans.Plan, found: Mapping[str, DomainSelection]) -> None:
    """Check that the budgets are met, all documents being tokenised where it takes that.

    Raises:
        UserError: a split lacks more of its budget than `missing_tokens` allows.
    """
    lacking, most = [], 0.0
    for domain in plan.domains:
        for _, cut in found[domain.name].cuts:
            if cut.asked and cut.lacks:
                lacking.append(
                    f"  {cut.split} of {domain.name}: {cut.tokens:,} of {cut.asked:,} tokens"
                )
                most = max(most, cut.lacks / cut.asked)
    listed = "\n".join(lacking)
    if most > plan.recipe.missing_tokens:
        raise UserError(
            f"found less text than {len(lacking)} budgets ask for, expected at least "
            f"{1 - plan.recipe.missing_tokens:.2%} of each (missing_tokens): give more text, lower "
            "the budgets, or set missing_tokens=1 to take what there is; finished pieces are kept\n"
            + listed
        )
    if lacking:
        log.warning("the text has less than the budgets ask for (missing_tokens):\n%s", listed)


def unit_files(
    plan: plans.Plan, domain: str, pool: str
) -> Iterator[tuple[units.Unit, units.UnitFile]]:
    """Open the units of a pool of a domain, in the order of the text."""
    for unit in plan.units:
        if unit.domain == domain and unit.pool == pool:
            path = plan.settings.folder / unit.file_name
            yield unit, units.UnitFile.open(path, plan.settings.dtype)


def _sorted(parts: Any) -> np.ndarray:
    return np.unique(np.concatenate([NONE, *parts]))


def _count(plan: plans.Plan, domain: plans.Domain, held_out: np.ndarray) -> DomainSelection:
    """Add up the units of a domain; leave out what is held out by files of its own."""
    selection = DomainSelection()
    repeated = []
    for pool in sorted(domain.pools):
        tokens = np.zeros(splits.BUCKETS, np.int64)
        before: dict[str, int] = defaultdict(int)  # lines of the file before the unit
        chunks: dict[str, list[str]] = defaultdict(list)
        for unit, file in unit_files(plan, domain.name, pool):
            head, name = file.head, unit.source.name
            for key in COUNTED:
                selection.counts[key] += head[key]
            for key in ("read_bytes", "bad_bytes", "documents"):
                selection.files[name][key] += head[key]
            for key, values in head["values"].items():
                selection.values[key].update(values)
            where = {"domain": domain.name, "file": name}
            for line, problem in head["problems"]:
                number = before[name] + line
                selection.problems.append({**where, "line": number, "problem": problem})
            before[name] += head["lines"]
            chunks[name] += head["chunks"]
            out = splits.contains(held_out if pool == "train" else NONE, file.hashes)
            repeated.append(file.hashes[out])
            np.add.at(tokens, splits.buckets(file.hashes[~out]), file.lengths[~out])
        selection.tokens[pool] = tokens
        selection.digests |= {name: fingerprints.digest(hashed) for name, hashed in chunks.items()}
    selection.repeats = sum(map(len, repeated))
    selection.excluded = _sorted(repeated)
    return selection


def _leave_out(
    plan: plans.Plan, domain: str, selection: DomainSelection, end: int, held_out: np.ndarray
) -> None:
    """Leave out of what a domain trains on, from bucket `end` on, what another one holds out."""
    repeated = [selection.excluded]
    tokens = selection.tokens["train"]
    for _, file in unit_files(plan, domain, "train") if len(held_out) else ():
        buckets = splits.buckets(file.hashes)
        out = (buckets >= end) & splits.contains(held_out, file.hashes)
        out &= ~splits.contains(selection.excluded, file.hashes)
        np.subtract.at(tokens, buckets[out], file.lengths[out])
        repeated.append(file.hashes[out])
        selection.repeats += int(out.sum())
    selection.excluded = _sorted(repeated)


def too_many_bad(
    plan: plans.Plan, bad: int, total: int, problems: list[dict[str, Any]]
) -> UserError:
    """Return an error that names bad documents and what to do."""
    shown = [p for p in problems if p["problem"] != units.EMPTY][:SHOWN]
    listed = "\n".join(f"  {p['file']}:{p['line']}: {p['problem']}" for p in shown)
    return UserError(
        f"found {bad:,} bad of {total:,} documents, expected at most "
        f"{plan.recipe.bad_documents:.2%} (bad_documents): repair them or allow more\n{listed}"
    )


def _refuse_bad(plan: plans.Plan, found: dict[str, DomainSelection]) -> None:
    bad = sum(domain.counts["bad"] for domain in found.values())
    total = bad + sum(domain.counts["documents"] for domain in found.values())
    if bad > plan.recipe.bad_documents * total:
        problems = [problem for domain in found.values() for problem in domain.problems]
        raise too_many_bad(plan, bad, total, problems)
    _refuse_unreadable(plan, found)
    _refuse_unmatched(plan, found)


def _refuse_unreadable(plan: plans.Plan, found: dict[str, DomainSelection]) -> None:
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


def _refuse_unmatched(plan: plans.Plan, found: dict[str, DomainSelection]) -> None:
    problems = [
        f"\n  domains.{domain.name}.where: {problem}"
        for domain in plan.domains
        for problem in _unmatched(domain.reads, found[domain.name])
    ]
    if problems:
        raise UserError(
            "found filters that match nothing, expected values that occur, in quotes where they "
            f"are text: correct `where`{''.join(problems)}"
        )


def _unmatched(reads: sources.Reads, found: DomainSelection) -> list[str]:
    problems = []
    for path, wanted in reads.where:
        name, values = ".".join(path), found.values[".".join(path)]
        if missing := [value for value in wanted if value not in values]:
            others = sorted(values.difference(wanted))[: sources.EXAMPLES]
            bools = " (YAML reads yes, no, on and off as true or false: quote them)"
            problems.append(
                f"no document has `{name}` equal to {' or '.join(missing)}"
                f"{bools if {'true', 'false'} & set(missing) else ''}; other values are "
                f"{', '.join(others) or 'none'}{' (no such field)' if others == ['null'] else ''}"
            )
    if reads.where and not problems and not found.counts["documents"] + found.counts["bad"]:
        problems.append("no document passes all of the filters")
    return problems
