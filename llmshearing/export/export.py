"""From a run to a Hugging Face directory: a function of tensors, verified before it appears.

Tensors are read and cut one at a time, so memory holds the tensors of one weight file, whatever the
model's size.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import ExportManifest
from llmshearing.checkpoints.tensors import Checkpoint, open_checkpoint
from llmshearing.errors import UserError
from llmshearing.export.model_card import model_card
from llmshearing.export.model_directory import (
    DTYPES,
    copy_files,
    new_model_directory,
    write_model,
)
from llmshearing.export.verification import gated_logits, verify
from llmshearing.files import write_text
from llmshearing.huggingface import tokenizer_files
from llmshearing.huggingface.weight_files import parse_size, weight_records
from llmshearing.pruning.distributions import DISTRIBUTIONS
from llmshearing.pruning.gates import Gates
from llmshearing.pruning.selection import UNDECIDED, Kept, count_undecided, decided_gates, select
from llmshearing.pruning.surgery import cut_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        dtype: of the weights written, `float32`, `bfloat16` or `float16`.
        max_shard_size: of a weight file, such as `5GB`.
        verify: load what was written and compare its logits with the gated model's.
        allow_undecided: export masks that have not made up their mind about every unit.
        tokenizer: directory to copy the tokenizer from; by default the run's source directory.
    """

    dtype: str = "float32"
    max_shard_size: str = "5GB"
    verify: bool = True
    allow_undecided: bool = False
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Decision:
    """What the masks of a checkpoint decide; empty for a model without masks.

    Attributes:
        kept: the units that stay.
        gates: the deterministic gates of all units.
        undecided: per axis name, how many units lie undecided and how many there are.
        frozen: whether the last steps trained the very model that export writes, whatever the
            masks say.
    """

    kept: Kept
    gates: Gates
    undecided: dict[str, dict[str, int]]
    frozen: bool


@dataclass(frozen=True)
class Exported:
    """What an export produced.

    Attributes:
        directory: the Hugging Face directory.
        shape: its shape.
        parameters: its parameters.
        undecided: per axis name, units that the masks had not decided on.
        difference: largest difference of its logits from the gated model's, float32; None where
            it was not verified.
    """

    directory: Path
    shape: Shape
    parameters: int
    undecided: dict[str, int]
    difference: float | None


def export(run: str | Path, out: str | Path, options: Options | None = None) -> Exported:
    """Write a run's model as a plain Hugging Face directory.

    Args:
        run: a run directory (its latest checkpoint is taken) or one checkpoint.
        out: the directory to make; it must not exist or be empty.
        options: how; by default in float32, verified, with decided masks only.

    Raises:
        UserError: no whole checkpoint, weights that are not the manifest's model, masks that are
            undecided, a tokenizer that does not match, an output that is not empty, an option that
            is not known, or logits that do not agree.
    """
    options = options or Options()
    if options.dtype not in DTYPES:
        raise UserError(f"found dtype {options.dtype!r}, expected one of {', '.join(DTYPES)}")
    parse_size(options.max_shard_size)
    checkpoint = open_checkpoint(run)
    table = family_of(checkpoint.config).table(checkpoint.config)
    check_weights(checkpoint, table)
    decision = decide(checkpoint, table)
    if not options.allow_undecided:
        _refuse_undecided(checkpoint, decision)
    tokenizer = options.tokenizer or Path(checkpoint.manifest.source.path)
    known = checkpoint.manifest.data.tokenizer["fingerprint"]
    tokenizer_files.check(tokenizer, table.source.vocabulary, known)
    with new_model_directory(out) as directory:
        shape, difference = _write(directory, checkpoint, table, decision, options, tokenizer)
        manifest = ExportManifest(
            source=checkpoint.manifest.source,
            shape=shape,
            dtype=options.dtype,
            kept={axis.value: units.tolist() for axis, units in decision.kept.items()},
            files=weight_records(directory),
            undecided=decision.undecided,
            logits_difference=difference,
            checkpoint=checkpoint.path.name,
            run=checkpoint.manifest,
        )
        manifest.write(directory)
        parameters = table.parameter_count(shape)
        card = model_card(Path(out).name, manifest, parameters)
        write_text(directory / "README.md", card)
    undecided = {axis: counts["undecided"] for axis, counts in decision.undecided.items()}
    return Exported(Path(out), shape, parameters, undecided, difference)


def _write(
    directory: Path,
    checkpoint: Checkpoint,
    table: CouplingTable,
    decision: Decision,
    options: Options,
    tokenizer: Path,
) -> tuple[Shape, float | None]:
    """Write the model's files; their shape, and how far the logits differ."""
    shape = write_model(
        directory,
        checkpoint.config,
        table,
        checkpoint.manifest.target or table.source,
        cut_tensors(checkpoint, table, decision),
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
    )
    copy_files(directory, tokenizer)
    if not options.verify:
        return shape, None
    logits = gated_logits(checkpoint, decision.gates)
    return shape, verify(directory, logits, cut_tensors(checkpoint, table, decision))


def decide(checkpoint: Checkpoint, table: CouplingTable) -> Decision:
    """The kept units and the deterministic gates of a checkpoint's masks."""
    logits = {Axis(name): value for name, value in checkpoint.mask_logits().items()}
    if not logits:
        return Decision({}, {}, {}, frozen=True)
    manifest = checkpoint.manifest
    if manifest.target is None or manifest.masks is None:
        raise UserError(
            f"{checkpoint.path} belongs to a run that prunes to a number of parameters and has not "
            "fixed its shape yet; train further, past pruning.fix_shape"
        )
    distribution = DISTRIBUTIONS[manifest.recipe["pruning"]["distribution"]]
    sharpness = manifest.masks.sharpness
    kept = select(logits, table.sizes(manifest.target))
    gates = decided_gates(distribution, logits, kept, sharpness)
    undecided = {}
    for axis, x in logits.items():
        keep = distribution.keep_probability(x, sharpness)
        count = count_undecided(keep, kept[axis])
        undecided[axis.value] = {"undecided": count, "units": x.numel()}
    return Decision(kept, gates, undecided, manifest.masks.frozen)


def check_weights(checkpoint: Checkpoint, table: CouplingTable) -> None:
    """See that a checkpoint holds the weights of the model that its manifest names.

    Raises:
        UserError: one is missing or of another size.
    """
    sizes = table.tensor_shapes(table.source)
    present = set(checkpoint.names())
    missing = [name for name in sizes if name not in present]
    other = [n for n in sizes if n in present and checkpoint.shape(n) != sizes[n]]
    if missing or other:
        raise UserError(
            f"{checkpoint.path} is not a checkpoint of the model that its manifest names: "
            f"{len(missing)} weights are missing and {len(other)} of another size, "
            f"{(missing + other)[0]} for one; take a checkpoint with its own manifest"
        )


def cut_tensors(
    checkpoint: Checkpoint, table: CouplingTable, decision: Decision
) -> Iterator[tuple[str, Tensor]]:
    """The exported model's tensors, one at a time."""
    return cut_model(table, decision.kept, decision.gates, checkpoint.read)


def _refuse_undecided(checkpoint: Checkpoint, decision: Decision) -> None:
    open_axes = {axis: c for axis, c in decision.undecided.items() if c["undecided"]}
    if open_axes and not decision.frozen:
        counts = ", ".join(
            f"{c['undecided']:,} of {c['units']:,} {a}" for a, c in open_axes.items()
        )
        low, high = UNDECIDED
        raise UserError(
            f"the masks of {checkpoint.path} are undecided: {counts} units are neither surely on "
            f"(keep probability {high} and more) nor surely off ({low} and less) as the target "
            "asks, so the exported model is not the one that was trained. Train longer, freeze "
            "earlier (pruning.freeze), or export it all the same with --allow-undecided"
        )
