"""The settings of a preparation: strict loading, and every error at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmshearing import strict
from llmshearing.data.schema import SPLITS
from llmshearing.errors import UserError
from llmshearing.preparation import sources

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass
class DomainRule:
    """Where a domain's text is.

    Attributes:
        files: a folder or a glob below `source`, or a list of these; the folder that bears the
            domain's name where none is given.
        eval_files: the same for held-out text, taken whole or up to its budget; where none is
            given, held-out text is split off `files`. A domain with neither `files` nor a folder
            of its name is only held out.
        text_field: the field that holds the text; the recipe's own where none is given.
        messages_field: the field that holds a chat; a domain that names it is chat data.
        tools_field: the field that holds the functions which the assistant may call, where a chat
            has it; null reads none.
        where: fields and the value, or list of values, that a document of the domain has in them,
            for files that mix domains; a dot leads into a field, e.g.
            `meta.redpajama_set_name: RedPajamaC4`. Text and numbers differ: 2023 is not "2023".
        weight: the domain's part of a budget for all domains; only ratios matter.
    """

    files: Any = None
    eval_files: Any = None
    text_field: str | None = None
    messages_field: str | None = None
    tools_field: str | None = "tools"
    where: dict[str, Any] | None = None
    weight: float | None = None


@dataclass
class SplitRule:
    """How much text a split takes of each domain; exactly one of the three.

    Attributes:
        tokens: a budget for all domains, shared out by their weights, e.g. `50B`.
        tokens_per_domain: a budget for each domain, e.g. `2M`.
        share: a part, 0 to 1, of what the splits before it left (eval, prune, continue).
    """

    tokens: Any = None
    tokens_per_domain: Any = None
    share: float | None = None


@dataclass
class Recipe:
    """A preparation.

    Attributes:
        source: the folder below which the domains' files are.
        output: the data tree to make.
        tokenizer: a SentencePiece `.model` or a Hugging Face directory.
        sequence_length: tokens in a row.
        seed: of the hash that splits documents.
        bos: begin each document with the tokenizer's BOS token, unless it is the EOS token too.
        eos: end each document with the tokenizer's EOS token.
        separator: the special token, e.g. `<|endoftext|>`, that ends each text in place of these
            two; a chat keeps what its template writes.
        text_field: the field of a line that holds the text.
        domains: the domains, in the order of the reports.
        splits: rules for `eval`, `prune` and `continue`; a split without a rule is not made,
            except `eval` where explicit files are given.
        bad_documents: part of all documents that may be bad before the run stops.
        bad_bytes: part of a file's bytes that may be in bad documents before the run stops.
        missing_tokens: part of a budget that the text may lack before the run stops; with 1 a
            split takes what there is.
        shard_bytes: size of an MDS shard.
        unit_bytes: size of a piece of work; it does not change the result.
        oversample: documents are chosen before they are tokenised, from an estimate; this many
            times the budget is tokenised so that the exact cut finds enough. Where it does not,
            more documents are chosen.
        processes: worker processes; 0 takes one a core.
    """

    source: str = MISSING
    output: str = MISSING
    tokenizer: str = MISSING
    sequence_length: int = MISSING
    seed: int = 17
    bos: bool = True
    eos: bool = True
    separator: str | None = None
    text_field: str = "text"
    domains: dict[str, DomainRule] = MISSING
    splits: dict[str, SplitRule] = field(default_factory=dict)
    bad_documents: float = 0.001
    bad_bytes: float = 0.1
    missing_tokens: float = 0.0
    shard_bytes: Any = "64MiB"
    unit_bytes: Any = "32MiB"
    oversample: float = 1.25
    processes: int = 0


def quantity(text: Any, units: dict[str, int] | None = None) -> int:
    """Read a count such as `2M`, `0.4B` or `1_000`.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(
        r"\s*([0-9][0-9_]*\.?[0-9]*(?:e\+?[0-9]+)?)\s*([a-z]*)\s*", str(text).lower()
    )
    units = units or _UNITS
    if not found or found[2] not in units:
        raise ValueError(
            f"found {text!r}, expected a number with one of {', '.join(filter(None, units))}"
        )
    return round(float(found[1].replace("_", "")) * units[found[2]])


def byte_size(text: Any) -> int:
    """Read a size such as `64MiB`.

    Raises:
        ValueError: it is none.
    """
    return quantity(text, _BYTES)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and its `key=value` overrides.

    Raises:
        UserError: unknown keys, missing or wrong values; all of them in one message.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"found no file {path}, expected a YAML recipe: see yamls/data/")
    try:
        found, problems = strict.read(path, overrides, Recipe)
        if problems:
            raise UserError(f"{path}: " + "; ".join(problems))
        given = OmegaConf.create(found)
        problems = _unknown_keys(given)
        if problems:
            raise UserError(f"{path}: " + "; ".join(problems))
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), given)
        problems = [
            f"`{name}` is missing: give it in the file or as {name}=..."
            for name in ("source", "output", "tokenizer", "sequence_length", "domains")
            if OmegaConf.is_missing(merged, name)
        ]
        if problems:
            raise UserError(f"{path}: " + "; ".join(problems))
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise UserError(f"{path}: {what} (key `{error.full_key}`)") from None
    except (ValueError, OSError) as error:  # YAML's own errors are ValueErrors or lack a file
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{path} is not YAML: {error}") from None
        raise
    assert isinstance(recipe, Recipe)
    for name in ("source", "output", "tokenizer"):
        setattr(recipe, name, str(Path(getattr(recipe, name)).expanduser()))
    problems = _problems(recipe)
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    return recipe


def _unknown_keys(given: DictConfig) -> list[str]:
    problems = _unknown(given, Recipe, "")
    for section, schema in (("domains", DomainRule), ("splits", SplitRule)):
        entries = given.get(section) if not OmegaConf.is_missing(given, section) else None
        if isinstance(entries, DictConfig):
            for name, entry in entries.items():
                if isinstance(entry, DictConfig):
                    problems += _unknown(entry, schema, f"{section}.{name}.")
    return problems


def _unknown(given: DictConfig, schema: type, prefix: str) -> list[str]:
    known = [item.name for item in fields(schema)]
    problems = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            problems.append(f"unknown key `{prefix}{key}`: {hint}")
    return problems


def filters(where: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Read the rules of `where`: paths of fields, and the values wanted there as JSON.

    Raises:
        ValueError: a value is neither text, a number, true, false, null nor a list of these.
    """
    if isinstance(where, dict) and (where or not path):
        found = {}
        for key, value in where.items():
            found |= filters(value, (*path, *str(key).split(".")))
        return found
    wanted = where if isinstance(where, list) else [where]
    if not wanted or any(isinstance(value, (list, dict)) for value in wanted):
        name = ".".join(path)
        raise ValueError(f"found {where!r} for `{name}`, expected a value or a list of values")
    return {path: tuple(map(sources.json_text, wanted))}


def _problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.sequence_length < 2:
        problems.append(f"sequence_length is {recipe.sequence_length}, expected at least 2")
    if not recipe.domains:
        problems.append("domains is empty, expected at least one")
    problems += [
        f"{name} is {getattr(recipe, name)}, expected 0 to 1"
        for name in ("bad_documents", "bad_bytes", "missing_tokens")
        if not 0 <= getattr(recipe, name) <= 1
    ]
    if recipe.oversample < 1:
        problems.append(f"oversample is {recipe.oversample}, expected at least 1")
    if recipe.processes < 0:
        problems.append(f"processes is {recipe.processes}, expected 0 or more")
    for name in ("shard_bytes", "unit_bytes"):
        try:
            size = byte_size(getattr(recipe, name))
            if not 1 <= size < 1 << 31:
                problems.append(f"{name} is {size} bytes, expected 1 to 2 GiB")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    for name, domain in recipe.domains.items():
        problems += _domain_problems(recipe, name, domain)
    for name, rule in recipe.splits.items():
        problems += _split_problems(recipe, name, rule)
    return problems


def _domain_problems(recipe: Recipe, name: str, domain: DomainRule | None) -> list[str]:
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        problems.append(
            f"domain `{name}`: expected at most 200 letters, digits, dots, dashes and underscores"
        )
    if domain is None:
        return problems
    if domain.text_field is not None and domain.messages_field is not None:
        problems.append(
            f"domains.{name}: found text_field and messages_field, expected one of them"
        )
    try:
        filters(domain.where)
    except ValueError as error:
        problems.append(f"domains.{name}.where: {error}")
    if domain.weight is not None and domain.weight < 0:
        problems.append(f"domains.{name}.weight is {domain.weight}, expected 0 or more")
    if domain.eval_files is None and "eval" not in recipe.splits:
        problems.append(f"domains.{name}: found no eval_files, expected them or a rule splits.eval")
    for key in ("files", "eval_files"):
        value = getattr(domain, key)
        listed = value if isinstance(value, list) else [value]
        if value is not None and not (listed and all(isinstance(x, str) for x in listed)):
            problems.append(f"domains.{name}.{key}: expected a folder or glob, or a list of these")
    return problems


def _split_problems(recipe: Recipe, name: str, rule: SplitRule) -> list[str]:
    if name not in SPLITS:
        return [f"splits.{name}: expected one of {', '.join(SPLITS)}"]
    given = [item.name for item in fields(SplitRule) if getattr(rule, item.name) is not None]
    if len(given) != 1:
        return [f"splits.{name}: expected one of tokens, tokens_per_domain, share; found {given}"]
    if rule.share is not None:
        return (
            [] if 0 < rule.share <= 1 else [f"splits.{name}.share is {rule.share}, expected 0 to 1"]
        )
    problems = []
    try:
        quantity(getattr(rule, given[0]))
    except ValueError as error:
        problems.append(f"splits.{name}.{given[0]}: {error}")
    if rule.tokens is not None:
        bare = [
            key for key, domain in recipe.domains.items() if not domain or domain.weight is None
        ]
        if bare:
            problems.append(f"splits.{name}.tokens needs a weight for {', '.join(bare)}")
        elif not sum(domain.weight or 0 for domain in recipe.domains.values()):
            problems.append(f"splits.{name}.tokens needs a weight above 0")
    return problems


def domain_tokens(recipe: Recipe, domain: str, rule: SplitRule) -> int | None:
    """Give the tokens a rule asks of a domain, or None where it asks for a share."""
    if rule.share is not None:
        return None
    if rule.tokens_per_domain is not None:
        return quantity(rule.tokens_per_domain)
    total = sum(entry.weight or 0 for entry in recipe.domains.values())
    return round(quantity(rule.tokens) * (recipe.domains[domain].weight or 0) / total)
