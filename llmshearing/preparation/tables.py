"""The tables before and after the work."""

from __future__ import annotations

from collections.abc import Sequence

from llmshearing.data.tree import DataTree
from llmshearing.preparation import inputs
from llmshearing.preparation import work_plan as plans


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            f"{x:<{w}}" if i == 0 else f"{x:>{w}}"
            for i, (x, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def count(number: int | None) -> str:
    """Give a number with separators, or a dash."""
    return "-" if number is None else f"{number:,}"


def before(plan: plans.Plan) -> str:
    """Tell what there is and what is asked, and what the text lacks, before any work."""
    rows, lacking = [], []
    for domain in plan.domains:
        files = [file for pool in domain.pools.values() for file in pool]
        asked = [ask.tokens for ask in domain.asks["train"] if ask.tokens is not None]
        short = max(0, sum(asked) - domain.estimate) if domain.estimate is not None else None
        rows.append(
            [
                domain.name,
                count(len(files)),
                f"{sum(file.size for file in files) / 1e6:,.1f}",
                count(domain.estimate),
                count(sum(asked)) if asked else "-",
                count(short),
            ]
        )
        if short:
            lacking.append(domain.name)
    head = ["domain", "files", "MB", "tokens, about", "asked", "lacking, about"]
    note = ""
    if lacking:
        note = (
            f"warning: the text of {', '.join(lacking)} seems to be less than the budgets ask for; "
            "the splits take it in the order eval, prune, continue, and missing_tokens="
            f"{plan.recipe.missing_tokens:g} is the part of a budget that may be missing\n"
        )
    for domain in plan.domains:
        if domain.skipped:
            number = f"{len(domain.skipped):,} inputs"
            note += f"domain {domain.name}: {number} are skipped{inputs.listed(domain.skipped)}\n"
    return table(head, rows) + note


def after(tree: DataTree) -> str:
    """Tell what a tree holds, by split and domain."""
    rows = []
    for split, domains in tree.splits.items():
        for name, info in domains.items():
            held = tree.manifest["splits"][split][name]
            rows.append(
                [
                    f"{split}/{name}",
                    count(info.documents),
                    count(info.rows),
                    count(info.tokens),
                    count(info.dropped_tokens),
                    count(held["lacking_tokens"]),
                    info.fingerprint[:12],
                ]
            )
    head = ["split/domain", "documents", "rows", "tokens", "dropped", "lacking", "fingerprint"]
    text = table(head, rows)
    bad = [
        f"{name}: {held['bad']:,} bad and {held['empty']:,} empty documents (bad_documents.jsonl)"
        for name, held in tree.manifest["domains"].items()
        if held["bad"] or held["empty"]
    ]
    repeats = [
        f"{name}: {held['repeats_of_held_out_text']:,} documents are left out because a domain "
        "holds out the same text"
        for name, held in tree.manifest["domains"].items()
        if held["repeats_of_held_out_text"]
    ]
    return text + "".join(f"{note}\n" for note in bad + repeats)
