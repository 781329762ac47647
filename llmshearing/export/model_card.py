"""The README.md of an exported directory: what it is, where it comes from, how to load it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from llmshearing.checkpoints.manifest import ExportManifest, RunManifest

CITATION = """\
@inproceedings{xia2024sheared,
  title = {Sheared {LLaMA}: Accelerating Language Model Pre-training via Structured Pruning},
  author = {Mengzhou Xia and Tianyu Gao and Zhiyuan Zeng and Danqi Chen},
  booktitle = {International Conference on Learning Representations},
  year = {2024},
}"""


def model_card(name: str, manifest: ExportManifest, parameters: int) -> str:
    """The card's Markdown for a run's export.

    Args:
        name: of the directory.
        manifest: of the exported directory.
        parameters: of the model.
    """
    assert manifest.run is not None
    sections = [
        _front_matter(manifest),
        f"# {name}\n\n{_opening(manifest, parameters)}",
        f"## Shape\n\n{_shapes(manifest)}",
        _masks(manifest),
        f"## Training\n\n{_training(manifest.run)}",
        f"## Use\n\n{_use(name)}",
        "## What stands beside it\n\n`llmshearing.json` has the recipe, the source's config, the "
        "kept units in the source's numbering, the fingerprints of data and tokenizer, and the "
        "versions of the libraries.",
        f"## Citation\n\nThe method is that of Sheared LLaMA:\n\n```bibtex\n{CITATION}\n```\n\n"
        "Cite the source model and its data beside it. Their licences hold for this model too.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: ExportManifest) -> str:
    tags = ["llmshearing", manifest.source.config["model_type"]]
    if _is_pruned(manifest):
        tags.append("pruned")
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _opening(manifest: ExportManifest, parameters: int) -> str:
    source = Path(manifest.source.path).name
    kind = manifest.source.config["model_type"]
    if not _is_pruned(manifest):
        made = f"`{source}`, trained further" if _pretrained(manifest) else "trained from scratch"
    else:
        made = f"`{source}`, pruned to a given shape with learned masks"
    difference = manifest.logits_difference
    checked = (
        "Its logits were not compared with the trained model's."
        if difference is None
        else f"Its logits are within {difference:.1e} of the trained model's."
    )
    return f"A {kind} model of {parameters:,} parameters ({manifest.dtype}): {made}.\n\n{checked}"


def _is_pruned(manifest: ExportManifest) -> bool:
    return manifest.run is not None and manifest.run.target is not None


def _pretrained(manifest: ExportManifest) -> bool:
    recipe = {} if manifest.run is None else manifest.run.recipe
    return recipe.get("model", {}).get("initialize") != "random"


def _shapes(manifest: ExportManifest) -> str:
    source, own = asdict(manifest.source.shape), asdict(manifest.shape)
    rows = [f"| {key} | {source[key]:,} | {own[key]:,} |" for key in own]
    return "\n".join(["| | source | this model |", "|---|---|---|", *rows])


def _masks(manifest: ExportManifest) -> str:
    undecided = {a: c for a, c in manifest.undecided.items() if c["undecided"]}
    if not undecided:
        return ""
    counts = ", ".join(f"{c['undecided']:,} of {c['units']:,} {a}" for a, c in undecided.items())
    return (
        f"The masks had not decided on {counts} units when it was exported; of these, those of "
        "the highest score were kept."
    )


def _training(run: RunManifest) -> str:
    trained = run.batch * run.recipe["data"]["global_batch"] * run.data.sequence_length
    share, weight = run.mixture.get("shares", {}), run.mixture.get("weights", {})
    rows = [
        f"| {domain} | {_number(share.get(domain))} | {_number(weight.get(domain))} | "
        f"{_number(run.losses.get(domain), 4)} |"
        for domain in run.data.fingerprints
    ]
    table = [
        "| domain | share of tokens | last weight | held-out loss |",
        "|---|---|---|---|",
        *rows,
    ]
    return (
        f"{trained:,} tokens of the {run.tokens:,} planned, in rows of "
        f"{run.data.sequence_length:,}. Loss in nats per token.\n\n" + "\n".join(table)
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _use(name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""
