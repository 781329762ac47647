"""Writes a cut model as a Hugging Face directory, verified before it appears."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmshearing.architecture.axes import Axis
from llmshearing.architecture.coupling import CouplingTable, derive_shape
from llmshearing.architecture.families import family_of
from llmshearing.architecture.shape import Shape
from llmshearing.checkpoints.manifest import ExportManifest, SourceRecord
from llmshearing.errors import UserError
from llmshearing.export.model_card import model_card
from llmshearing.export.verification import Original, gated_logits, verify
from llmshearing.files import new_directory, write_text
from llmshearing.huggingface import tokenizer_files
from llmshearing.huggingface.stock import stock_config, write_config
from llmshearing.huggingface.weight_files import (
    WeightFiles,
    parse_size,
    weight_records,
    write_weights,
)
from llmshearing.pruning.gates import Gates
from llmshearing.pruning.selection import Kept
from llmshearing.pruning.surgery import cut_model

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Format:
    """How weights are stored; a UserError if a value is unknown."""

    dtype: str = "float32"  # `float32`, `bfloat16` or `float16`
    max_shard_size: str = "5GB"  # of a weight file, such as `5GB`

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"found dtype {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        parse_size(self.max_shard_size)


@dataclass(frozen=True)
class Exported:
    """A directory that was written."""

    directory: Path  # the Hugging Face directory
    manifest: ExportManifest  # its manifest
    parameters: int  # of the model in it

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return self.manifest.shape

    @property
    def undecided(self) -> dict[str, int]:
        """Per axis name, units that the masks had not decided on."""
        return {axis: n["undecided"] for axis, n in self.manifest.undecided.items()}

    @property
    def difference(self) -> float | None:
        """Largest difference of its logits from the gated model's; None if not verified."""
        return self.manifest.logits_difference


def write_directory(
    out: str | Path,
    original: Original,
    source: SourceRecord,
    table: CouplingTable,
    target: Shape,
    kept: Kept,
    gates: Gates,
    form: Format,
    tokenizer: Path,
    *,
    verified: bool = True,
    **recorded: Any,
) -> Exported:
    """Cut a model and write it to `out`, which must not exist or be empty.

    The gates of the kept units are folded into the weights, and the tokenizer is copied from its
    directory. If `verified`, the logits are compared with the gated model's. `source` and what is
    `recorded` go to the manifest.

    Raises:
        UserError: `out` is taken or cannot be written, or the logits do not agree.
    """
    out = Path(out).expanduser()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        return cut_model(table, kept, gates, original.read)

    with _new_directory(out) as directory:
        dtype, shapes = getattr(torch, form.dtype), table.tensor_shapes(target)
        write_weights(directory, shapes, tensors(), dtype, form.max_shard_size)
        stored = WeightFiles(directory).stored
        shape = derive_shape(table, {name: tensor.shape for name, tensor in stored.items()})
        _write_config(directory, original.config, shape, kept, form.dtype)
        tokenizer_files.copy(tokenizer, directory)
        difference = None
        if verified:
            difference = verify(directory, gated_logits(original, gates), tensors())
        manifest = ExportManifest(
            source=source,
            shape=shape,
            dtype=form.dtype,
            kept={axis.value: units.tolist() for axis, units in kept.items()},
            files=weight_records(directory),
            logits_difference=difference,
            **recorded,
        )
        manifest.write(directory)
        parameters = table.parameter_count(shape)
        if manifest.run is not None:
            write_text(directory / "README.md", model_card(out.name, manifest, parameters))
    return Exported(out, manifest, parameters)


def target_fields(config: dict[str, Any], shape: Shape, kept: Kept) -> dict[str, Any]:
    """A source's config fields with another shape, without code of its own."""
    layers = kept.get(Axis.LAYER, torch.arange(shape.layers)).tolist()
    fields = family_of(config).reshaped(config, shape, layers)
    return {key: value for key, value in fields.items() if key != "auto_map"}


def _write_config(
    directory: Path, config: dict[str, Any], shape: Shape, kept: Kept, dtype: str
) -> None:
    """The source's config with another shape, for the stock model and without code of its own."""
    fields = target_fields(config, shape, kept) | {"dtype": dtype}
    fields["architectures"] = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[fields["model_type"]]]
    write_config(stock_config(fields), directory)


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` on success and is removed on failure."""
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(new_directory(out))
        except FileExistsError as error:
            taken = error.filename or out  # it may be a file above `out`
            raise UserError(
                f"{taken} exists and is not empty; give a new directory or remove this one"
            ) from error
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise UserError(
                f"cannot make {out} ({error.strerror}); give a directory that can be written"
            ) from error
        yield directory
