"""From a run's checkpoint to a Hugging Face directory: masks decide, tensors are cut.

Tensors are read and cut one at a time, so memory holds the tensors of one weight file, whatever the
model's size.
"""

from dataclasses import dataclass
from pathlib import Path

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.checkpoints.manifest import SourceRecord
from llmshearing.checkpoints.tensors import Checkpoint, open_checkpoint
from llmshearing.errors import UserError
from llmshearing.export.directory import Exported, Format, write_directory
from llmshearing.huggingface import tokenizer_files
from llmshearing.huggingface.hub import model_directory
from llmshearing.pruning.distributions import DISTRIBUTIONS
from llmshearing.pruning.gates import Gates
from llmshearing.pruning.selection import UNDECIDED, Kept, count_undecided, decided_gates, select


@dataclass(frozen=True)
class Decision:
    """What the masks of a checkpoint decide; empty for a model without masks."""

    kept: Kept  # the units that stay
    gates: Gates  # the deterministic gates of all units
    # per axis name, how many units are undecided and how many there are
    undecided: dict[str, dict[str, int]]
    frozen: bool  # whether the last steps trained exactly the model that export writes


def export(
    run: str | Path,
    out: str | Path,
    form: Format | None = None,
    *,
    verify: bool = True,
    allow_undecided: bool = False,
    tokenizer: Path | None = None,
) -> Exported:
    """Write a run's model as a plain Hugging Face directory.

    Args:
        run: a run directory (its latest checkpoint is taken) or one checkpoint.
        out: the directory to make; it must not exist or be empty.
        form: how weights are stored; float32 by default.
        verify: load what was written and compare its logits with the gated model's.
        allow_undecided: export masks that are undecided about some units.
        tokenizer: where to copy the tokenizer from, a directory or `org/name[@revision]` of the
            hub; by default the run's source.

    Raises:
        UserError: no whole checkpoint, weights that are not the manifest's model, masks that are
            undecided, a tokenizer that does not match, an output that is not empty, or logits that
            do not agree.
    """
    checkpoint = open_checkpoint(run)
    manifest, table = checkpoint.manifest, family_of(checkpoint.config).table(checkpoint.config)
    check_weights(checkpoint, table)
    decision = decide(checkpoint, table)
    if not allow_undecided:
        _refuse_undecided(checkpoint, decision)
    tokenizer = model_directory(tokenizer or _origin(manifest.source))
    fingerprint = manifest.data.tokenizer["fingerprint"]
    tokenizer_files.check(tokenizer, table.source.vocabulary, fingerprint)
    return write_directory(
        out,
        checkpoint,
        manifest.source,
        table,
        manifest.target or table.source,
        decision.kept,
        decision.gates,
        form or Format(),
        tokenizer,
        verified=verify,
        undecided=decision.undecided,
        checkpoint=checkpoint.path.name,
        run=manifest,
    )


def _origin(source: SourceRecord) -> str:
    """Where a run's source is now: its directory, or its repository once the cache is gone."""
    if Path(source.path).is_dir():
        return source.path
    return source.repository or source.path


def decide(checkpoint: Checkpoint, table: CouplingTable) -> Decision:
    """The kept units and the gates of a checkpoint's masks; a UserError while it has no shape."""
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
    scales = {Axis(name): value for name, value in checkpoint.gate_scales().items()}
    scaled = {axis: x * scales[axis] if axis in scales else x for axis, x in logits.items()}
    gates = decided_gates(distribution, scaled, kept, sharpness)
    undecided = {}
    for axis, x in logits.items():
        count = count_undecided(distribution.keep_probability(x, sharpness), kept[axis])
        undecided[axis.value] = {"undecided": count, "units": x.numel()}
    return Decision(kept, gates, undecided, manifest.masks.frozen)


def check_weights(checkpoint: Checkpoint, table: CouplingTable) -> None:
    """Refuse a checkpoint without the weights of the model in its manifest with a UserError."""
    shapes = table.tensor_shapes(table.source)
    present = set(checkpoint.names())
    missing = [name for name in shapes if name not in present]
    other = [n for n in shapes if n in present and checkpoint.shape(n) != shapes[n]]
    if missing or other:
        raise UserError(
            f"{checkpoint.path} is not a checkpoint of the model in its manifest: {len(missing)} "
            f"weights are missing and {len(other)} have another size, for example "
            f"{(missing + other)[0]}; take a checkpoint with its own manifest"
        )


def _refuse_undecided(checkpoint: Checkpoint, decision: Decision) -> None:
    undecided = {axis: n for axis, n in decision.undecided.items() if n["undecided"]}
    if undecided and not decision.frozen:
        counts = [f"{n['undecided']:,} of {n['units']:,} {axis}" for axis, n in undecided.items()]
        low, high = UNDECIDED
        raise UserError(
            f"the masks of {checkpoint.path} are undecided: {', '.join(counts)} units are neither "
            f"on (keep probability of at least {high}) nor off (at most {low}) as the target asks, "
            "so the exported model is not the one that was trained. Train longer, freeze the masks "
            "earlier (pruning.freeze), or export anyway with --allow-undecided"
        )
