"""What a preparation will do: files, units, and how much of each domain to tokenise."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmshearing.data.schema import SPLITS, token_dtype
from llmshearing.errors import UserError
from llmshearing.huggingface.hub import model_directory
from llmshearing.preparation import (
    encoders,
    fingerprints,
    hf_datasets,
    inputs,
    sources,
    splits,
    units,
)
from llmshearing.preparation import recipe as recipes
from llmshearing.quantities import byte_size

WORK_FOLDER = ".prepare"
SAMPLED_FILES = 8
SAMPLED_PLACES = 4  # of each of those files
SAMPLED_CHARACTERS = 1 << 17  # of each of those files
SMALL = 64_000_000  # a domain of fewer tokens is tokenised whole


@dataclass(frozen=True)
class Domain:
    """A domain to prepare."""

    name: str
    pools: dict[str, list[sources.TextFile]]  # `train`, and `eval` if held-out files are given
    reads: sources.Reads  # what to read of a record
    asks: dict[str, list[splits.Ask]]  # what each split asks of each pool
    estimate: int | None  # tokens of the train pool, about; None if no budget needs to know
    keep: int  # bound on the hashes of the documents to tokenise at first
    skipped: dict[str, str]  # files and folders that are not read, and why


@dataclass(frozen=True)
class Plan:
    """A preparation, planned.

    The two digests cover all that the tree, or finished units, depend on, except the content of the
    raw files.
    """

    recipe: recipes.PreparationRecipe
    root: Path  # the tree to write
    domains: list[Domain]
    units: list[units.Unit]  # the pieces of work, in the order of the text
    settings: "units.UnitSettings"
    identity: str
    work_identity: str

    @property
    def files(self) -> fingerprints.Files:
        """Paths and stamps of the raw files, by name."""
        return {unit.source.name: (unit.source.path, unit.stamp) for unit in self.units}

    @property
    def bounds(self) -> dict[str, int]:
        """Bound on the hashes of the documents to tokenise, by domain."""
        return {unit.domain: unit.keep for unit in self.units if unit.pool == "train"}

    @property
    def work(self) -> Path:
        """The work folder, removed when the tree is complete."""
        return self.root / WORK_FOLDER


def make(recipe: recipes.PreparationRecipe) -> Plan:
    """Plan a preparation from its recipe and the files found; a UserError if any is missing."""
    root = Path(recipe.output)
    if not Path(recipe.tokenizer).exists():
        tokenizer = str(model_directory(recipe.tokenizer))
        recipe = recipe.model_copy(update={"tokenizer": tokenizer})
    facts = encoders.inspect(recipe.tokenizer)
    marks = encoders.choose_marks(facts, bos=recipe.bos, eos=recipe.eos, separator=recipe.separator)
    chat = None
    if any(rule.is_chat for rule in recipe.domains.values()):
        chat = units.ChatEncoder(recipe.tokenizer)
        facts = replace(facts, vocabulary=max(facts.vocabulary, chat.vocabulary))
    domains = [_domain(recipe, name, rule, facts, marks) for name, rule in recipe.domains.items()]
    settings = units.UnitSettings(
        folder=root / WORK_FOLDER / "units",
        tokenizer=facts,
        tokenizer_path=recipe.tokenizer,
        dtype=token_dtype(facts.vocabulary),
        seed=recipe.seed,
        marks=marks,
        unit_bytes=byte_size(recipe.unit_bytes),
        reads={domain.name: domain.reads for domain in domains},
    )
    work = _units(domains, settings.unit_bytes)
    identities = _identities(recipe, settings, domains, chat)
    return Plan(recipe, root, domains, work, settings, *identities)


def with_bounds(plan: Plan, bounds: Mapping[str, int]) -> Plan:
    """Return the plan with other bounds on the hashes of the documents to tokenise, by domain."""
    work = [
        unit if unit.pool == "eval" else replace(unit, keep=bounds.get(unit.domain, unit.keep))
        for unit in plan.units
    ]
    return replace(plan, units=work)


def _domain(
    recipe: recipes.PreparationRecipe,
    name: str,
    rule: recipes.DomainRule,
    facts: encoders.TokenizerFacts,
    marks: encoders.Marks,
) -> Domain:
    source = Path(recipe.source)
    asks = {
        split: splits.Ask(split, recipe.tokens_of(name, entry), entry.share)
        for split, entry in recipe.splits.items()
    }
    pools: dict[str, list[sources.TextFile]] = {"train": []}
    pool_asks: dict[str, list[splits.Ask]] = {}
    skipped: dict[str, str] = {}
    only_eval = (
        rule.eval_files
        and rule.files is None
        and rule.dataset is None
        and not (source / name).exists()
    )
    if rule.dataset is not None:
        pools["train"] = _dataset_files(rule.dataset, f"domain {name}")
    elif not only_eval:
        pools["train"], skipped = inputs.find(source, rule.files or [name], f"domain {name}")
    if rule.eval_files is not None:
        what = f"domain {name}, eval_files"
        pools["eval"], others = inputs.find(source, rule.eval_files, what)
        skipped |= others
        held = {_place(one) for one in pools["eval"]}
        pools["train"] = [one for one in pools["train"] if _place(one) not in held]
        ask = asks.pop("eval", None)  # a share is of text that is split off, not of these files
        whole = splits.Ask("eval", None, 1.0)
        pool_asks["eval"] = [ask if ask and ask.tokens is not None else whole]
        if only_eval and rule.weight:
            raise UserError(
                f"domain {name}: found weight {rule.weight:g} and no files to train on: set "
                "files, or weight 0 to hold it out only"
            )
        if not pools["train"] and asks and not only_eval:
            raise UserError(f"domain {name}: found no file except its eval_files: set files")
    ordered = [asks[split] for split in SPLITS if split in asks and not only_eval]
    estimate, keep, chat = None, units.WHOLE, rule.is_chat
    where = tuple(recipes.filters(rule.where).items()) if rule.where else ()
    named = rule.messages_field or rule.text_field or recipe.text_field
    reads = sources.Reads(named, where, chat, rule.tools_field if chat else None, rule.pairs)
    if any(ask.tokens is not None for ask in ordered) and not chat:
        estimate = _estimate(pools["train"], reads, facts, marks)
        keep = splits.keep_bound(ordered, estimate, recipe.oversample, SMALL)
    return Domain(name, pools, reads, {"train": ordered, **pool_asks}, estimate, keep, skipped)


def _place(file: sources.TextFile) -> str:
    return os.path.realpath(file.path) if isinstance(file.path, Path) else file.name


def _dataset_files(given: recipes.DatasetRule, what: str) -> list[sources.TextFile]:
    paths = hf_datasets.find(given.path, given.name, given.split, what)
    about = "/".join(part for part in (given.path, given.name, given.split) if part)
    return [
        sources.TextFile(path, f"{about}/{path.name}", path.stat().st_size)
        for path in sorted(paths, key=lambda path: path.name)
    ]


def _units(domains: list[Domain], unit_bytes: int) -> list[units.Unit]:
    stamp = functools.cache(fingerprints.stamp)  # a file may be in several domains
    work: list[units.Unit] = []
    for domain in domains:
        for pool, files in sorted(domain.pools.items()):
            keep = units.WHOLE if pool == "eval" else domain.keep
            for source in files if domain.asks[pool] else ():
                ranges = sources.block_ranges(source, unit_bytes)
                work += [
                    units.Unit(
                        len(work) + index, domain.name, pool, source, blocks,
                        (index, len(ranges)), stamp(source.path), keep,
                    )
                    for index, blocks in enumerate(ranges)
                ]  # fmt: skip
    return work


def _identities(
    recipe: recipes.PreparationRecipe,
    settings: units.UnitSettings,
    domains: list[Domain],
    chat: units.ChatEncoder | None,
) -> tuple[str, str]:
    work = [
        settings.tokenizer.fingerprint,
        chat and chat.identity,
        settings.dtype,
        [settings.marks.text, settings.marks.chat],
        settings.seed,
        units.FORMAT,
    ]
    asks = []
    for domain in domains:
        reads = domain.reads
        work.append([domain.name, reads.chat, reads.field, reads.tools])
        work += [reads.pair] if reads.pair else []
        work.append(domain.reads.where)
        for pool, files in sorted(domain.pools.items()):
            work.append([pool, *([file.name, file.size] for file in files)])
            asks += [[domain.name, pool, a.split, a.tokens, a.share] for a in domain.asks[pool]]
    shards = [recipe.sequence_length, byte_size(recipe.shard_bytes)]
    return digest([work, shards, asks]), digest([work, settings.unit_bytes])


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _estimate(
    files: list[sources.TextFile],
    reads: sources.Reads,
    facts: encoders.TokenizerFacts,
    marks: encoders.Marks,
) -> int:
    """Estimate the tokens of some files from samples of a few of them."""
    unit_bytes = sources.BLOCK_BYTES  # not the recipe's: the cut into units changes no result
    tokens = sampled = 0.0
    for file in files[:: -(-len(files) // SAMPLED_FILES)]:
        ranges = sources.block_ranges(file, unit_bytes)
        if file.kind in ("plain", "parquet"):  # others are read from their beginning
            ranges = ranges[:: -(-len(ranges) // SAMPLED_PLACES)]
        texts: list[bytes] = []
        text = raw = 0  # bytes of the text, and of the lines that it is in
        for blocks in ranges[:SAMPLED_PLACES]:
            size = 0
            for document in sources.documents(file, blocks, unit_bytes, reads):
                raw += document.size
                if isinstance(document.value, str):
                    text += len(document.value.encode("utf-8", "ignore"))
                    value = document.value[: SAMPLED_CHARACTERS // SAMPLED_PLACES]
                    texts.append(value.encode("utf-8", "ignore"))
                    size += len(texts[-1])
                if size * SAMPLED_PLACES >= SAMPLED_CHARACTERS:
                    break
        if size := sum(map(len, texts)):
            encoded = encoders.fastest(facts).encode(texts)
            ids, _ = encoders.with_marks(*encoded, marks.text)
            part = 1.0 if file.kind == "parquet" else text / raw
            tokens += len(ids) / size * part * file.size * sources.expansion(file, reads.field)
        sampled += file.size
    return round(tokens / sampled * sum(file.size for file in files)) if sampled else 0
