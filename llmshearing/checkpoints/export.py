"""From a run to a Hugging Face directory: a function of tensors, verified before it appears."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, derive_shape
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.runs import RunCheckpoint, open_run
from llmshearing.checkpoints.source import load_model, read_source, tokenizer_files
from llmshearing.errors import UserError
from llmshearing.files import new_directory, write_json
from llmshearing.models.gated import insert_gates, set_gates
from llmshearing.pruning.distributions import distribution_of
from llmshearing.pruning.gates import Gates
from llmshearing.pruning.selection import Kept, decided_gates, select
from llmshearing.pruning.surgery import cut_model

log = logging.getLogger(__name__)

MANIFEST = "llmshearing.json"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exported:
    """What an export produced.

    Attributes:
        directory: the Hugging Face directory.
        shape: its shape.
        parameters: its parameters.
        difference: largest difference of its logits from the gated model's, float32.
    """

    directory: Path
    shape: Shape
    parameters: int
    difference: float


def export(run: str | Path, out: str | Path, dtype: str = "float32") -> Exported:
    """Write a run's model as a plain Hugging Face directory.

    Args:
        run: a run directory (its latest checkpoint is taken) or one checkpoint file.
        out: the directory to make; it must not exist or be empty.
        dtype: of the weights written, `float32`, `bfloat16` or `float16`.

    Raises:
        UserError: no checkpoint, an output that is not empty, a dtype that is not known, or
            logits that do not agree.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"found dtype {dtype!r}, expected float32, bfloat16 or float16")
    checkpoint = open_run(run)
    table = family_of(checkpoint.config).table(checkpoint.config)
    weights = checkpoint.weights()
    kept, gates = decide(checkpoint, table)
    try:
        with new_directory(out) as directory:
            tensors = dict(cut_model(table, kept, gates, weights.__getitem__))
            shape = _write_model(directory, checkpoint, tensors, getattr(torch, dtype))
            _write_manifest(directory, checkpoint, shape, kept)
            gated = _gated_model(checkpoint, weights, gates)
            difference = verify(directory, gated, tensors, dtype)
    except FileExistsError as error:
        raise UserError(
            f"{out} exists and is not empty; give a new directory or remove this one"
        ) from error
    return Exported(Path(out), shape, table.parameter_count(shape), difference)


def decide(checkpoint: RunCheckpoint, table: CouplingTable) -> tuple[Kept, Gates]:
    """The kept units and the deterministic gates of a checkpoint's masks; empty without masks."""
    if checkpoint.target is None:
        return {}, {}
    logits = {Axis(name): value for name, value in checkpoint.mask_logits().items()}
    distribution = distribution_of(checkpoint.recipe["pruning"]["distribution"])
    kept = select(logits, table.sizes(checkpoint.target))
    sharpness = checkpoint.manifest["masks"]["sharpness"]
    return kept, decided_gates(distribution, logits, kept, sharpness)


def _write_model(
    directory: Path, checkpoint: RunCheckpoint, tensors: dict[str, Tensor], dtype: torch.dtype
) -> Shape:
    """Config from the tensors, weights, tokenizer and generation config."""
    family = family_of(checkpoint.config)
    table = family.table(checkpoint.config)
    shape = derive_shape(table, {name: tuple(t.shape) for name, t in tensors.items()})
    fields = checkpoint.config | family.write_shape(shape) | {"dtype": str(dtype).split(".")[1]}
    config = AutoConfig.for_model(**fields)
    config.save_pretrained(directory)
    cast = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    save_file(cast, directory / "model.safetensors", metadata={"format": "pt"})
    for file in tokenizer_files(checkpoint.source_path):
        shutil.copyfile(file, directory / file.name)
    if (checkpoint.source_path / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(checkpoint.source_path).save_pretrained(directory)
    return shape


def _write_manifest(directory: Path, checkpoint: RunCheckpoint, shape: Shape, kept: Kept) -> None:
    """The run's manifest with the kept units in source numbering."""
    write_json(
        directory / MANIFEST,
        {
            **checkpoint.manifest,
            "checkpoint": checkpoint.path.name,
            "shape": asdict(shape),
            "kept": {axis.value: units.tolist() for axis, units in kept.items()},
        },
    )


def verify(
    directory: Path, gated: PreTrainedModel, tensors: dict[str, Tensor], dtype: str
) -> float:
    """Load the directory strictly and compare its logits with the gated model's.

    In float32 they must agree to 1e-5 of the largest logit. A narrower dtype rounds the weights, so
    then the loaded weights are compared with the rounded tensors instead, to the bit.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: they do not agree.
    """
    loaded = load_model(read_source(directory))
    state = loaded.state_dict()
    for name, tensor in tensors.items():
        if not torch.equal(state[name], tensor.to(getattr(torch, dtype)).float()):
            raise UserError(f"the exported {name} is not what was written; nothing was kept")
    tokens = _probe(gated.config.vocab_size)
    with torch.no_grad():
        expected, found = gated(tokens).logits, loaded(tokens).logits
    difference = (expected - found).abs().max().item()
    bound = TOLERANCE * max(1.0, expected.abs().max().item())
    if dtype == "float32" and not difference <= bound:
        raise UserError(
            f"the exported model's logits differ from the gated model's by {difference:.2e}, "
            f"expected at most {bound:.2e}; nothing was kept"
        )
    return difference


def _gated_model(checkpoint: RunCheckpoint, weights: dict[str, Tensor], gates: Gates) -> Any:
    """The source model with the checkpoint's weights under its deterministic gates."""
    config = AutoConfig.for_model(**checkpoint.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    model.load_state_dict(weights, strict=True)
    if gates:
        table = family_of(checkpoint.config).table(checkpoint.config)
        set_gates(insert_gates(model, table), table, gates)
    return model


def _probe(vocabulary: int) -> Tensor:
    """A few rows of random tokens, the same each time. [2, 32]."""
    return torch.randint(0, vocabulary, (2, 32), generator=torch.Generator().manual_seed(0))
