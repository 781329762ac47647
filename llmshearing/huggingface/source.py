"""Reading a Hugging Face directory: config, coupling table, weights, tokenizer."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel

from llmshearing import substrate
from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of, read_config
from llmshearing.architecture.family import Family
from llmshearing.checkpoints.manifest import SourceRecord
from llmshearing.errors import UserError
from llmshearing.huggingface.hub import model_directory, repository_of
from llmshearing.huggingface.stock import (
    complete_fields,
    empty_parameters,
    stock_config,
    stock_model,
)
from llmshearing.huggingface.weight_files import WeightFiles

# From a parameter: the tensor with the values that this process holds, and which rows they are.
Part = Callable[[Tensor], tuple[Tensor, slice]]
# A tensor is read in pieces, so that a large one is never in memory twice.
PIECE_BYTES = 32 << 20
# Old versions of Transformers stored rotary embeddings; today they are computed.
INVERSE_FREQUENCIES = r"rotary_emb\.inv_freq$"
CHECKPOINTED = "_checkpoint_wrapped_module."  # torch's mark on a block that is recomputed


def whole(parameter: Tensor) -> tuple[Tensor, slice]:
    """All rows, for a parameter that is not sharded."""
    return parameter, slice(None)


@dataclass(frozen=True)
class Source:
    """A Hugging Face directory that the code can prune or train."""

    path: Path  # the directory
    config: dict[str, Any]  # its config with every default filled in
    family: Family  # its model family
    table: CouplingTable  # its coupling table

    def record(self) -> SourceRecord:
        """What a manifest says of it."""
        path = self.path.resolve()
        return SourceRecord(str(path), self.table.source, self.config, repository_of(path))


def read_source(model: str | Path) -> Source:
    """Read and check the config of a model: a directory, or `org/name[@revision]` of the hub.

    No weights are read.

    Raises:
        UserError: no directory or config, an unknown family, a field that the family refuses, one
            that Transformers cannot read, or the hub does not give it.
    """
    path = model_directory(model)
    config = complete_fields(stock_config(read_config(path)))
    family = family_of(config)
    return Source(path, config, family, family.table(config))


def check_source(source: Source, *, weights: bool = True) -> None:
    """Check that the stock model can be computed and, if `weights`, that its weights are there.

    The model is made of fake tensors, and only the headers of the weight files are read. So this
    takes no memory, and its time grows with the number of tensors, not with their size.

    Raises:
        UserError: Transformers cannot compute the model, or its weights do not fit.
    """
    stored = WeightFiles(source.path) if weights else None
    with substrate.fake_tensors():
        model = _stock_model(source, "sdpa")
        if stored is not None:
            _check_fit(model, stored)
        try:
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
        except Exception as error:
            raise _cannot_compute(source, "sdpa", error) from error


def check_attention(source: Source, attention: str) -> str | None:
    """Check that Transformers knows an implementation of attention.

    Returns:
        Why that cannot be decided here, if it needs a device or a package that is not here.

    Raises:
        UserError: there is no such attention.
    """
    try:
        with substrate.fake_tensors():
            _stock_model(source, attention)
    except UserError as error:
        if isinstance(error.__cause__, ImportError):
            return f"model.attention={attention} cannot be checked here: {error.__cause__}"
        raise
    return None


def load_model(source: Source, *, attention: str = "sdpa", random: bool = False) -> PreTrainedModel:
    """The stock model in float32; every weight is found and none is left over.

    Weights are read piece by piece, so that host memory holds the model once. `random` draws them
    from torch's generator instead.

    Raises:
        UserError: weights are missing, unexpected, of another size, or there are none.
    """
    if random:
        return _stock_model(source, attention)
    weights = WeightFiles(source.path)
    model = empty_model(source, weights, attention=attention)
    fill(model, weights)
    return model


def empty_model(
    source: Source,
    weights: WeightFiles,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The stock model on the meta device, checked against the weights.

    All ranks call it: the checksums of an exported directory's files are compared here. Buffers
    such as rotary frequencies are float32 whatever the dtype of the parameters.

    Raises:
        UserError: weights are missing, unexpected, of another size or damaged.
    """
    weights.check_contents()
    with empty_parameters():
        model = _stock_model(source, attention)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    _check_fit(model, weights)
    return model.eval()


def fill(
    model: nn.Module,
    weights: WeightFiles,
    part: Part = whole,
    device: torch.device | None = None,
) -> None:
    """Read the weights into a model of `empty_model`, one at a time, and allocate its parameters.

    If these have been sharded since, `part` says which rows of a parameter are here, and in which
    tensor. The device is by default that of their mesh, or the default device.
    """
    aliases = parameter_aliases(model)
    made: dict[nn.Parameter, nn.Parameter] = {}
    with torch.no_grad():
        for module in model.modules():
            for name, empty in list(module.named_parameters(recurse=False)):
                if not empty.is_meta:
                    continue
                if empty not in made:
                    made[empty] = _read_parameter(empty, aliases[empty], weights, part, device)
                setattr(module, name, made[empty])
        for name, buffer in _stored_buffers(model).items():
            buffer.copy_(weights.read(name))


def parameter_aliases(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter with all its names; a tied one has several."""
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name.replace(CHECKPOINTED, ""))
    return aliases


def _read_parameter(
    empty: nn.Parameter,
    names: list[str],
    weights: WeightFiles,
    part: Part,
    device: torch.device | None,
) -> nn.Parameter:
    if device is None and isinstance(empty, DTensor):
        device = torch.device(empty.device_mesh.device_type)
    filled = nn.Parameter(
        torch.empty_like(empty, device=device or torch.get_default_device()),
        requires_grad=empty.requires_grad,
    )
    here, rows = part(filled)
    stored = next(name for name in names if name in weights.stored)
    first = rows.indices(empty.shape[0])[0]
    step = max(1, PIECE_BYTES // max(1, here[:1].numel() * here.element_size()))
    for begin in range(0, here.shape[0], step):
        piece = here[begin : begin + step]
        piece.copy_(weights.read(stored, slice(first + begin, first + begin + len(piece))))
    return filled


def _stock_model(source: Source, attention: str) -> PreTrainedModel:
    config = stock_config(source.config)
    config.name_or_path = str(source.path)
    try:
        model = stock_model(config, attention=attention)
    except Exception as error:  # of any kind, from the constructors of the modules
        raise _cannot_compute(source, attention, error) from error
    if (file := source.path / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(source.path)
        except Exception as error:
            raise UserError(
                f"Transformers cannot read {file} ({_first_line(error)}); correct or remove it"
            ) from error
    return model


def _cannot_compute(source: Source, attention: str, error: Exception) -> UserError:
    return UserError(
        f"{source.path}: Transformers cannot compute this model with model.attention={attention} "
        f"({_first_line(error)}); give sdpa or eager, or install what that asks for; otherwise "
        "correct config.json"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a model keeps in its weight files."""
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if not isinstance(t, nn.Parameter)}


def _check_fit(model: PreTrainedModel, weights: WeightFiles) -> None:
    """Check that every weight of the model is stored in its size, and nothing else is."""
    expected = {tuple(names): p for p, names in parameter_aliases(model).items()}
    expected |= {(name,): buffer for name, buffer in _stored_buffers(model).items()}
    known = {name for names in expected for name in names}
    ignored = re.compile("|".join([INVERSE_FREQUENCIES, *substrate.ignored_weights(model)]))
    wrong = {
        "missing": [names[0] for names in expected if not set(names) & weights.stored.keys()],
        "unexpected": [n for n in weights.stored if n not in known and not ignored.search(n)],
        "of another size": [
            f"{name} {list(weights.stored[name].shape)} where {list(tensor.shape)} fits"
            for names, tensor in expected.items()
            for name in names
            if name in weights.stored and weights.stored[name].shape != tuple(tensor.shape)
        ],
    }
    for name in sorted(known & weights.stored.keys()):
        weights.check_floating(name)
    found = "; ".join(f"{kind}: {_few(names)}" for kind, names in wrong.items() if names)
    if found:
        raise UserError(
            f"the weights in {weights.path} do not fit its config ({found}); expected exactly the "
            "parameters of the stock model: take config.json and weights from the same model"
        )


def _few(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + rest
