"""The README.md of an exported directory: what it is, where it comes from, how to load it."""

from dataclasses import asdict
from pathlib import Path

from llmshearing.checkpoints.manifest import ExportManifest, RunManifest

CARD = """\
---
library_name: transformers{base}
pipeline_tag: text-generation
tags:
- llmshearing
- {kind}{pruned_tag}
---

# {name}

A {kind} model of {parameters:,} parameters ({dtype}): {origin}.

{verified}

## Shape

| | source | this model |
|---|---|---|
{shapes}
{undecided}
## Training

{trained:,} tokens of the {planned:,} planned, in rows of {row:,}. Loss in nats per token.

| domain | share of tokens | last weight | held-out loss |
|---|---|---|---|
{domains}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

## Details

`llmshearing.json` has the recipe, the source's config, the kept units in the source's numbering,
the fingerprints of data and tokenizer, and the versions of the libraries.

## Citation

The method is that of Sheared LLaMA:

```bibtex
@inproceedings{{xia2024sheared,
  title = {{Sheared {{LLaMA}}: Accelerating Language Model Pre-training via Structured Pruning}},
  author = {{Mengzhou Xia and Tianyu Gao and Zhiyuan Zeng and Danqi Chen}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2024}},
}}
```

Cite the source model and its data too. Their licences also apply to this model.
"""


def model_card(name: str, manifest: ExportManifest, parameters: int) -> str:
    """The card's Markdown for a run's export to a directory of the given name."""
    run, difference = manifest.run, manifest.logits_difference
    assert run is not None
    shape = asdict(manifest.shape)
    rows = [
        f"| {n} | {size:,} | {shape[n]:,} |" for n, size in asdict(manifest.source.shape).items()
    ]
    return CARD.format(
        name=name,
        base=f"\nbase_model: {_repository(run)[0]}" if run.source.repository else "",
        kind=manifest.source.config["model_type"],
        pruned_tag="" if run.target is None else "\n- pruned",
        parameters=parameters,
        dtype=manifest.dtype,
        origin=_origin(run),
        verified="Its logits were not compared with the trained model's."
        if difference is None
        else f"Its logits are within {difference:.1e} of the trained model's.",
        shapes="\n".join(rows),
        undecided=_undecided(manifest),
        trained=run.batch * run.recipe["data"]["global_batch"] * run.data.sequence_length,
        planned=run.tokens,
        row=run.data.sequence_length,
        domains="\n".join(_domain(run, domain) for domain in run.data.fingerprints),
    )


def _origin(run: RunManifest) -> str:
    source = Path(run.source.path).name
    if run.source.repository:
        source = "{}` at commit `{}".format(*_repository(run))
    if run.target is not None:
        return f"`{source}`, pruned to a given shape with learned masks"
    random = run.recipe.get("model", {}).get("initialize") == "random"
    return "trained from scratch" if random else f"`{source}`, trained further"


def _repository(run: RunManifest) -> list[str]:
    """Name and commit of a source on the hub."""
    return (run.source.repository or "").split("@")


def _undecided(manifest: ExportManifest) -> str:
    counts = [
        f"{n['undecided']:,} of {n['units']:,} {axis}"
        for axis, n in manifest.undecided.items()
        if n["undecided"]
    ]
    if not counts:
        return ""
    return (
        f"\nThe masks had not decided on {', '.join(counts)} units when it was exported; of these, "
        "those of the highest score were kept.\n"
    )


def _domain(run: RunManifest, domain: str) -> str:
    values = [run.mixture.get(key, {}).get(domain) for key in ("shares", "weights")]
    cells = ["-" if value is None else f"{value:.3f}" for value in values]
    loss = run.losses.get(domain)
    return f"| {domain} | {' | '.join(cells)} | {'-' if loss is None else f'{loss:.4f}'} |"
