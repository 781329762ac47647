"""What is to be done: files, units, and how much of each domain has to be tokenised."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmshearing.data.schema import SPLITS, token_dtype
from llmshearing.errors import UserError
from llmshearing.preparation import encoders, fingerprints, inputs, sources, splits, units
from llmshearing.preparation import recipe as recipes

WORK_FOLDER = ".prepare"
SAMPLED_FILES = 8
SAMPLED_PLACES = 4  # of each of those files
SAMPLED_CHARACTERS = 1 << 17  # of each of those files
SMALL = 64_000_000  # tokens; a domain's text of fewer is tokenised whole


@dataclass(frozen=True)
class Domain:
    """A domain to prepare.

    Attributes:
        name: the domain.
        pools: its files: `train`, and `eval` where held-out files are given.
        reads: what to read of a record.
        chat: whether that is a chat.
        asks: what each split asks of each pool.
        estimate: tokens of the train pool, roughly; None where no budget needs it.
        keep: bound on the hashes of documents to tokenise at first.
        skipped: files and folders that are not read, and why.
    """

    name: str
    pools: dict[str, list[sources.Source]]
    reads: sources.Reads
    chat: bool
    asks: dict[str, list[splits.Ask]]
    estimate: int | None
    keep: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """A preparation, worked out.

    Attributes:
        recipe: the settings.
        root: the tree to make.
        tokenizer: what is known of the tokenizer.
        domains: the domains.
        units: the pieces of work, in the order of the text.
        settings: what the pieces share.
        paths: the raw files, by name.
        stamps: of these files.
        identity: digest of all that the result depends on, but for the content of the files.
        work_identity: the same of finished units.
    """

    recipe: recipes.Recipe
    root: Path
    tokenizer: encoders.TokenizerFacts
    domains: list[Domain]
    units: list[units.Unit] = field(repr=False)
    settings: units.UnitSettings = field(repr=False)
    paths: dict[str, Path] = field(repr=False)
    stamps: dict[str, fingerprints.Stamp] = field(repr=False)
    identity: str = ""
    work_identity: str = ""

    @property
    def bounds(self) -> dict[str, int]:
        """Bound on the hashes of the documents to tokenise, by domain."""
        return {unit.domain: unit.keep for unit in self.units if unit.pool == "train"}

    @property
    def work(self) -> Path:
        """The folder of the work under way; it goes when the tree is whole."""
        return self.root / WORK_FOLDER


def make(recipe: recipes.Recipe) -> Plan:
    """Work out a preparation from its recipe and the files there are.

    Raises:
        UserError: files, tokenizer or marks are missing.
    """
    root = Path(recipe.output)
    facts = encoders.inspect(recipe.tokenizer)
    marks = encoders.choose_marks(facts, bos=recipe.bos, eos=recipe.eos, separator=recipe.separator)
    rules = {name: rule or recipes.DomainRule() for name, rule in recipe.domains.items()}
    vocabulary = facts.vocabulary
    chat = None
    if any(rule.messages_field for rule in rules.values()):
        chat = units.ChatEncoder(recipe.tokenizer)
        vocabulary = max(vocabulary, chat.vocabulary)
    domains = _domains(recipe, rules, facts, marks)
    settings = units.UnitSettings(
        folder=root / WORK_FOLDER / "units",
        tokenizer=facts,
        tokenizer_path=recipe.tokenizer,
        dtype=token_dtype(vocabulary),
        seed=recipe.seed,
        marks=marks,
        unit_bytes=recipes.byte_size(recipe.unit_bytes),
        reads={domain.name: domain.reads for domain in domains},
        chats=frozenset(domain.name for domain in domains if domain.chat),
    )
    identity, work_identity = _identities(recipe, settings, domains, chat)
    work = _units(domains, settings.unit_bytes)
    return Plan(
        recipe=recipe,
        root=root,
        tokenizer=facts if vocabulary == facts.vocabulary else facts.with_vocabulary(vocabulary),
        domains=domains,
        units=work,
        settings=settings,
        paths={unit.source.name: unit.source.path for unit in work},
        stamps={unit.source.name: unit.stamp for unit in work},
        identity=identity,
        work_identity=work_identity,
    )


def with_bounds(plan: Plan, bounds: Mapping[str, int]) -> Plan:
    """Return the plan with other bounds on the hashes of the documents to tokenise, by domain."""
    work = [
        replace(unit, keep=bounds[unit.domain])
        if unit.pool == "train" and unit.domain in bounds
        else unit
        for unit in plan.units
    ]
    return replace(plan, units=work)


def _domains(
    recipe: recipes.Recipe,
    rules: Mapping[str, recipes.DomainRule],
    facts: encoders.TokenizerFacts,
    marks: encoders.Marks,
) -> list[Domain]:
    source = Path(recipe.source)
    encoder: encoders.Encoder | None = None
    domains = []
    for name, rule in rules.items():
        asks = {
            split: splits.Ask(split, recipes.domain_tokens(recipe, name, entry), entry.share)
            for split, entry in recipe.splits.items()
        }
        pools: dict[str, list[sources.Source]] = {"train": []}
        skipped: dict[str, str] = {}
        held_out: list[splits.Ask] = []
        only_eval = rule.eval_files and rule.files is None and not (source / name).exists()
        if not only_eval:
            what = f"domain {name}"
            pools["train"], skipped = inputs.find(source, _listed(rule.files or name), what)
        if rule.eval_files is not None:
            what = f"domain {name}, eval_files"
            pools["eval"], others = inputs.find(source, _listed(rule.eval_files), what)
            skipped |= others
            held = {os.path.realpath(one.path) for one in pools["eval"]}
            pools["train"] = [
                one for one in pools["train"] if os.path.realpath(one.path) not in held
            ]
            ask = asks.pop("eval", None)  # a share is of text that is split off, not of these
            whole = splits.Ask("eval", None, 1.0)
            held_out = [ask if ask and ask.tokens is not None else whole]
            if only_eval and rule.weight:
                raise UserError(
                    f"domain {name}: found weight {rule.weight:g} and no files to train on: set "
                    "files, or weight 0 to hold it out only"
                )
            if only_eval:
                asks = {}
            elif not pools["train"] and asks:
                raise UserError(f"domain {name}: found no file except its eval_files: set files")
        ordered = [asks[split] for split in SPLITS if split in asks]
        estimate, chat = None, rule.messages_field is not None
        where = tuple(recipes.filters(rule.where).items()) if rule.where else ()
        named = rule.messages_field or rule.text_field or recipe.text_field
        reads = sources.Reads(named, where, rule.tools_field if chat else None)
        if any(ask.tokens is not None for ask in ordered) and not chat:
            encoder = encoder or encoders.fastest(facts)
            estimate = _estimate(pools["train"], reads, encoder, marks)
        keep = units.WHOLE
        if estimate is not None:
            keep = splits.keep_bound(ordered, estimate, recipe.oversample, SMALL)
        pool_asks = {"train": ordered, "eval": held_out}
        domains.append(Domain(name, pools, reads, chat, pool_asks, estimate, keep, skipped))
    return domains


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def _units(domains: list[Domain], unit_bytes: int) -> list[units.Unit]:
    stamp = functools.cache(fingerprints.stamp)  # a file may be of several domains
    made: list[units.Unit] = []
    for domain in domains:
        for pool, files in sorted(domain.pools.items()):
            keep = units.WHOLE if pool == "eval" else domain.keep
            for source in files if domain.asks[pool] else ():
                ranges = sources.block_ranges(source, unit_bytes)
                for index, blocks in enumerate(ranges):
                    part, changed = (index, len(ranges)), stamp(source.path)
                    made.append(
                        units.Unit(
                            len(made), domain.name, pool, source, blocks, part, changed, keep
                        )
                    )
    return made


def size(unit: units.Unit, unit_bytes: int) -> int:
    """Give the bytes of the file that a unit covers, or about as many."""
    ranges = sources.block_ranges(unit.source, unit_bytes) if unit.source.kind == "parquet" else []
    blocks = unit.blocks[1] - unit.blocks[0]
    if ranges:
        return round(unit.source.size * blocks / ranges[-1][1])
    block = sources.plain_block_bytes(unit_bytes)
    if unit.source.kind != "plain":
        block = sources.COMPRESSED_BLOCK_BYTES
    return min(blocks * block, unit.source.size - unit.blocks[0] * block)


def _identities(
    recipe: recipes.Recipe,
    settings: units.UnitSettings,
    domains: list[Domain],
    chat: units.ChatEncoder | None,
) -> tuple[str, str]:
    text = {
        "tokenizer": settings.tokenizer.fingerprint,
        "chat": chat and chat.identity,
        "dtype": settings.dtype,
        "marks": [settings.marks.text, settings.marks.chat],
        "seed": settings.seed,
        "domains": [
            {
                "name": domain.name,
                "field": [domain.reads.field, domain.reads.tools],
                "where": domain.reads.where,
                "chat": domain.chat,
                "files": [
                    [pool, file.name, file.size]
                    for pool, files in sorted(domain.pools.items())
                    for file in files
                ],
            }
            for domain in domains
        ],
    }
    result = [text, recipe.sequence_length, recipes.byte_size(recipe.shard_bytes)]
    result += [
        [domain.name, pool, ask.split, ask.tokens, ask.share]
        for domain in domains
        for pool, asks in sorted(domain.asks.items())
        for ask in asks
    ]
    return digest(result), digest([text, units.FORMAT, settings.unit_bytes])


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _estimate(
    files: list[sources.Source],
    reads: sources.Reads,
    encoder: encoders.Encoder,
    marks: encoders.Marks,
) -> int:
    """Estimate the tokens of some files from samples of a few of them."""
    unit_bytes = sources.BLOCK_BYTES  # not the recipe's: the cut into units changes no result
    tokens = spanned = 0.0
    for file in files[:: -(-len(files) // SAMPLED_FILES)]:
        ranges = sources.block_ranges(file, unit_bytes)
        if file.kind in ("plain", "parquet"):  # others are read from their beginning
            ranges = ranges[:: -(-len(ranges) // SAMPLED_PLACES)]
        texts: list[bytes] = []
        for blocks in ranges[:SAMPLED_PLACES]:
            size = 0
            for document in sources.documents(file, blocks, unit_bytes, reads):
                if isinstance(document.value, str):
                    value = document.value[: SAMPLED_CHARACTERS // SAMPLED_PLACES]
                    texts.append(value.encode("utf-8", "ignore"))
                    size += len(texts[-1])
                if size * SAMPLED_PLACES >= SAMPLED_CHARACTERS:
                    break
        if size := sum(map(len, texts)):
            ids, _ = encoders.with_marks(*encoder.encode(texts), marks.text)
            tokens += len(ids) / size * file.size * sources.text_ratio(file, reads)
            spanned += file.size
    everything = sum(file.size for file in files)
    return round(tokens / spanned * everything) if spanned else 0
