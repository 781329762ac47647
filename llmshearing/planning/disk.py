"""Bytes on disk: data, checkpoints, exported model."""

import math

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.config import Recipe
from llmshearing.data.schema import token_dtype
from llmshearing.planning.state import StateBytes, Target, exported_parameters, mask_shapes
from llmshearing.quantities import steps

ROW_OVERHEAD = 4  # an MDS shard's offset of each row


def row_bytes(sequence_length: int, vocabulary: int) -> int:
    """Bytes of a row of token ids in an uncompressed shard."""
    size = {"uint16": 2, "uint32": 4}[token_dtype(vocabulary)]
    return sequence_length * size + ROW_OVERHEAD


def disk_bytes(
    recipe: Recipe,
    table: CouplingTable,
    target: Target,
    state: StateBytes,
    data: int,
) -> dict[str, int]:
    """Bytes by what they are used for; `state` is that of one rank that holds everything."""
    total = steps(recipe.run.duration)
    written = -(-total // steps(recipe.run.checkpoint_interval))
    keep = recipe.run.keep_checkpoints
    # the next checkpoint is complete before the oldest is removed
    kept = written if keep < 0 else min(written, keep + 1)
    one = state.parameters + state.masks + state.optimizer
    masks = 4 * sum(math.prod(shape) for shape in mask_shapes(table, target, "released"))
    scores = masks * -(-total // steps(recipe.run.eval_interval))
    exported = 4 * exported_parameters(table, target)
    interval = recipe.run.export_interval
    exports = -(-total // steps(interval)) if interval else 0
    return {
        "data": data,
        f"{kept} checkpoint{'s' * (kept != 1)} of {one / 1e9:,.1f}": kept * one,
        **({"mask scores": scores} if scores else {}),
        **({f"{exports} exports during the run": exports * exported} if exports else {}),
        "exported model (float32)": exported,
    }
