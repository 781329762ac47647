"""Whether an exported directory is the gated model: loaded strictly, run, compared.

Both models run with the parameters of one module in memory at a time, so verifying takes no more
memory than exporting, whatever the model's size.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmshearing.architecture.families import family_of
from llmshearing.errors import UserError
from llmshearing.huggingface.source import empty_model, parameter_aliases, read_source
from llmshearing.huggingface.stock import empty_parameters, stock_config, stock_model
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.models.gated import GatedLinear, insert_gates, set_gates
from llmshearing.pruning.gates import Gates

TOLERANCE = 1e-5
# Rows and tokens on which logits are compared. Every weight but an embedding's takes part in every
# token's logits, and up to about eight tokens the time is that of reading the weights.
PROBE = (1, 8)


class Original(Protocol):
    """What a directory is written from: a run's checkpoint, or a source directory."""

    @property
    def config(self) -> dict[str, Any]:
        """The source's complete config."""
        ...

    def names(self) -> list[str]:
        """Names of its tensors."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor."""
        ...


def gated_logits(original: Original, gates: Gates) -> Tensor:
    """The gated model's logits of the probe, [rows, tokens, vocabulary] in float64."""
    table = family_of(original.config).table(original.config)
    with empty_parameters():
        model = stock_model(stock_config(original.config))
    if gates:
        sites = insert_gates(model, table)
        set_gates(sites, table, gates)
        _gate_activations([site.module for site in sites])
    return _probe_logits(model, set(original.names()), original.read)


def verify(directory: Path, expected: Tensor, tensors: Iterable[tuple[str, Tensor]]) -> float:
    """Load a directory strictly and compare its logits with the gated model's.

    Weights stored in float32 must give them to 1e-5 of the largest logit. A narrower dtype rounds
    the weights; in that case the stored weights must equal the rounded tensors bit for bit.

    `expected` is from `gated_logits`, and `tensors` gives every tensor before it was rounded.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: they do not agree.
    """
    source, weights = read_source(directory), WeightFiles(directory)
    found = _probe_logits(empty_model(source, weights), set(weights.stored), weights.read)
    difference = (expected - found).abs().max().item()
    bound = TOLERANCE * max(1.0, expected.abs().max().item())
    if source.config["dtype"] != "float32":
        _compare_rounded(weights, tensors)
    elif not difference <= bound:
        raise UserError(
            f"the exported model's logits differ from the gated model's by {difference:.2e}, "
            f"expected at most {bound:.2e}; nothing was kept"
        )
    return difference


def _probe_logits(model: nn.Module, stored: set[str], read: Callable[[str], Tensor]) -> Tensor:
    """Logits of the probe by a model on the meta device, computed in float64.

    Every module reads its parameters before its forward and drops them after it. In float32 the
    rounding of a pretrained model's large activations, which cancel each other, can exceed the
    tolerance by itself.
    """
    aliases = parameter_aliases(model)  # a tied parameter has several names
    for module in model.modules():
        empty = dict(module.named_parameters(recurse=False))
        names = {n: next(a for a in aliases[p] if a in stored) for n, p in empty.items()}

        def fill(module: nn.Module, _: Any, names: dict[str, str] = names) -> None:
            for name, stored_name in names.items():
                value = read(stored_name).to(torch.float64)
                setattr(module, name, nn.Parameter(value, requires_grad=False))

        def drop(module: nn.Module, *_: Any, empty: dict[str, nn.Parameter] = empty) -> None:
            for name, parameter in empty.items():
                setattr(module, name, parameter)

        if empty:
            module.register_forward_pre_hook(fill)
            module.register_forward_hook(drop)
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    tokens = torch.randint(0, config.vocab_size, PROBE, generator=generator)
    with torch.inference_mode(), _StayInFloat64():
        return model.eval()(tokens, use_cache=False).logits


class _StayInFloat64(TorchFunctionMode):
    """Keeps the float64 of what stock code casts to float32, as its norms do."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        to_float32 = func is Tensor.float or (
            func is Tensor.to
            and any(given is torch.float32 for given in (*args[1:], *kwargs.values()))
        )
        if to_float32 and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **kwargs)


def _gate_activations(modules: Iterable[nn.Module]) -> None:
    """Make projections gate their inputs and outputs, as the method defines it.

    This equals the product of weight and gates that training computes, without a copy of every
    weight, and does not depend on the products that were written.
    """
    for module in modules:
        if not isinstance(module, GatedLinear):
            continue  # hooks get the module, its inputs and, after it, its output
        before, after = module.in_gate, module.out_gate
        module.in_gate = module.out_gate = None
        if before is not None:
            module.register_forward_pre_hook(lambda *given, gate=before: (given[1][0] * gate,))
        if after is not None:
            module.register_forward_hook(lambda *given, gate=after: given[2] * gate)


def _compare_rounded(weights: WeightFiles, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        stored = weights.read(name)
        if not torch.equal(stored, tensor.to(stored.dtype)):
            raise UserError(f"the exported {name} is not what was written; nothing was kept")
        if not torch.isfinite(stored).all():
            raise UserError(
                f"the exported {name} has values that {stored.dtype} cannot hold; nothing was "
                "kept: export with --dtype bfloat16 or float32"
            )
