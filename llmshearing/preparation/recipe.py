"""The recipe of a preparation: its keys, and the rules between them."""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from llmshearing.preparation.sources import json_text
from llmshearing.quantities import ByteSize, Fraction, NotNegative, Quantity, byte_size, count
from llmshearing.typed_yaml import PathText, Section

Filters: TypeAlias = dict[tuple[str, ...], tuple[str, ...]]


def _listed(given: Any) -> Any:
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(isinstance(x, str) for x in listed):
        raise PydanticCustomError("patterns", "a folder or glob, or a list of these")
    return listed


def filters(where: Any, path: tuple[str, ...] = ()) -> Filters:
    """Read the rules of `where`: paths of fields, and the values wanted there as JSON."""
    if isinstance(where, dict) and (where or not path):
        found = {}
        for key, value in where.items():
            found |= filters(value, (*path, *str(key).split(".")))
        return found
    wanted = where if isinstance(where, list) else [where]
    if not wanted or any(isinstance(value, (list, dict)) for value in wanted):
        raise PydanticCustomError("where", "for each field a value or a list of values")
    return {path: tuple(map(json_text, wanted))}


def _where(given: dict[str, Any]) -> dict[str, Any]:
    filters(given)
    return given


SOME = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Patterns = Annotated[list[str], BeforeValidator(_listed), WithJsonSchema(SOME)]
Where = Annotated[dict[str, Any], AfterValidator(_where)]


class DatasetRule(Section):
    """A data set of the Hugging Face library `datasets`."""

    path: PathText = Field(examples=["org/name"])
    """A repository of the hub, a folder of data files, or one that `save_to_disk` wrote."""
    name: str | None = None
    """Its configuration."""
    split: str = "train"
    """Its split; all of it is read."""


class DomainRule(Section):
    """Where a domain's text is."""

    files: Patterns | None = None
    """A folder or a glob below `source`, or a list of these; by default the folder with the
    domain's name. Also `hf://datasets/...`, `s3://...`, `gs://...` and `https://...`."""
    dataset: DatasetRule | None = None
    """A data set in place of files."""
    eval_files: Patterns | None = None
    """The same for held-out text, taken whole or up to its budget. By default held-out text is
    split off `files`. A domain with neither `files` nor a folder of its name is only held out."""
    text_field: str | None = None
    """The field that holds the text; by default the recipe's."""
    messages_field: str | None = None
    """The field that holds a chat; a domain that names it is chat data."""
    pairs: Literal["alpaca", "prompt_completion"] | None = None
    """Records that are a question and its answer, as chats of two turns: `alpaca` has the fields
    instruction, input and output, `prompt_completion` has prompt and completion."""
    tools_field: str | None = "tools"
    """The field that holds the functions which the assistant may call, where a chat has it; null
    reads none."""
    where: Where | None = None
    """Fields and the value, or list of values, that a document of the domain has in them, for files
    that mix domains. A dot leads into a field, e.g. `meta.redpajama_set_name: RedPajamaC4`. Text
    and numbers differ: 2023 is not "2023"."""
    weight: NotNegative | None = None
    """The domain's part of a budget for all domains; only ratios matter."""

    @property
    def is_chat(self) -> bool:
        """Whether the domain is chat data."""
        return self.messages_field is not None or self.pairs is not None


class SplitRule(Section):
    """How much text a split takes of each domain: exactly one of the three."""

    tokens: Quantity | None = None
    """A budget for all domains, shared out by their weights, e.g. `50B`."""
    tokens_per_domain: Quantity | None = None
    """A budget for each domain, e.g. `2M`."""
    share: float | None = Field(default=None, gt=0, le=1)
    """A part, up to 1, of what the splits before it left (eval, prune, continue)."""


class PreparationRecipe(Section):
    """Everything that decides a preparation."""

    source: PathText = Field(examples=["raw"])
    """The folder below which the domains' files are."""
    output: PathText = Field(examples=["data/tree"])
    """The data tree to make."""
    tokenizer: PathText = Field(examples=["MODEL"])
    """A SentencePiece `.model`, a Hugging Face directory, or `org/name[@revision]` of the hub."""
    sequence_length: int = Field(ge=2, lt=1 << 31, examples=[4096])
    """Tokens in a row."""
    seed: int = Field(default=17, ge=0, lt=1 << 64)
    """Of the hash that splits documents."""
    bos: bool = True
    """Begin each document with the tokenizer's BOS token, unless it is the EOS token too."""
    eos: bool = True
    """End each document with the tokenizer's EOS token."""
    separator: str | None = None
    """The special token, e.g. `<|endoftext|>`, that ends each text in place of these two; a chat
    keeps what its template writes."""
    text_field: str = "text"
    """The field of a record that holds the text; a dot leads into a field, e.g. `data.text`."""
    domains: dict[str, DomainRule] = Field(min_length=1, examples=[{"web": {"eval_files": "."}}])
    """The domains, in the order of the reports."""
    splits: dict[Literal["eval", "prune", "continue"], SplitRule] = Field(default_factory=dict)
    """Rules for the splits. A split without a rule is not made, except `eval` where a domain has
    `eval_files`."""
    bad_documents: Fraction = 0.001
    """Part of all documents that may be bad before the run stops."""
    bad_bytes: Fraction = 0.1
    """Part of a file's bytes that may be in bad documents before the run stops."""
    missing_tokens: Fraction = 0.0
    """Part of a budget that the text may lack before the run stops; with 1 a split takes what there
    is."""
    shard_bytes: ByteSize = "64MiB"
    """Size of an MDS shard."""
    unit_bytes: ByteSize = "32MiB"
    """Size of a piece of work; it does not change the result."""
    oversample: float = Field(default=1.25, ge=1)
    """Documents are chosen before they are tokenised, from an estimate. This many times the budget
    is tokenised so that the exact cut finds enough. Where it does not, more are chosen."""
    processes: int = Field(default=0, ge=0)
    """Worker processes; 0 means one per core."""

    def rules(self) -> list[str]:
        """Compare domains and splits."""
        errors = [
            f"{name}: found {getattr(self, name)}, expected less than 2GiB"
            for name in ("shard_bytes", "unit_bytes")
            if byte_size(getattr(self, name)) >= 1 << 31
        ]
        for name, domain in self.domains.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
                errors.append(
                    f"domains.{name}: expected a name of at most 200 letters, digits, dots, dashes "
                    "and underscores"
                )
            for group in (("text_field", "messages_field", "pairs"), ("files", "dataset")):
                given = [key for key in group if getattr(domain, key) is not None]
                if len(given) > 1:
                    errors.append(f"domains.{name}: found {' and '.join(given)}, expected one")
            if domain.eval_files is None and "eval" not in self.splits:
                errors.append(f"domains.{name}: expected eval_files, or a rule splits.eval")
        for name, rule in self.splits.items():
            given = sorted(rule.model_dump(exclude_none=True))
            if len(given) != 1:
                errors.append(
                    f"splits.{name}: found {', '.join(given) or 'nothing'}, expected one of "
                    "tokens, tokens_per_domain, share"
                )
            bare = [name for name, domain in self.domains.items() if domain.weight is None]
            if rule.tokens is not None and bare:
                errors.append(f"splits.{name}.tokens: expected a weight for {', '.join(bare)}")
            elif rule.tokens is not None and not self.total_weight:
                errors.append(f"splits.{name}.tokens: expected a weight above 0")
        return errors

    @property
    def total_weight(self) -> float:
        """Sum of the domains' weights."""
        return sum(domain.weight or 0 for domain in self.domains.values())

    def tokens_of(self, domain: str, rule: SplitRule) -> int | None:
        """Return the tokens that a rule asks of a domain; None where it asks for a share."""
        if rule.tokens is not None:
            part = (self.domains[domain].weight or 0) / self.total_weight
            return round(count(rule.tokens) * part)
        return None if rule.tokens_per_domain is None else count(rule.tokens_per_domain)
