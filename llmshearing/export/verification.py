"""Whether an exported directory is the gated model: loaded strictly, run, compared.

Both models run with the parameters of one module in memory at a time, so that a model of any size
is verified in the memory in which it is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.accelerate import init_empty_weights

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.architecture.families import family_of
from llmshearing.errors import UserError
from llmshearing.huggingface.source import empty_model, parameter_aliases, read_source
from llmshearing.huggingface.weight_files import WeightFiles
from llmshearing.models.gated import GatedLinear, insert_gates, set_gates
from llmshearing.pruning.gates import Gates

TOLERANCE = 1e-5
# Rows and tokens on which logits are compared. Every weight but an embedding's takes part in every
# token's logits, and the time is that of reading the weights up to about eight tokens.
PROBE = (1, 8)


class Original(Protocol):
    """What a directory was written from: a run's checkpoint, or a source directory."""

    @property
    def config(self) -> dict[str, Any]:
        """The source's config, complete."""
        ...

    def names(self) -> list[str]:
        """Names of its tensors."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor."""
        ...


def gated_logits(original: Original, gates: Gates) -> Tensor:
    """The gated model's logits of the probe, [rows, tokens, vocabulary] in float32.

    Args:
        original: what a directory is written from.
        gates: the deterministic gates of the checkpoint's masks.
    """
    table = family_of(original.config).table(original.config)
    model = _gated_model(original, table, gates)
    with torch.inference_mode():
        return model(_probe(table.source.vocabulary), use_cache=False).logits


def verify(directory: Path, expected: Tensor, tensors: Iterable[tuple[str, Tensor]]) -> float:
    """Load a directory strictly and compare its logits with the gated model's.

    In float32 they must agree to 1e-5 of the largest logit. A narrower dtype rounds the weights, so
    then those in the files are compared with the rounded tensors instead, to the bit.

    Args:
        directory: what was written.
        expected: from `gated_logits` of what it was written from.
        tensors: name and value of every tensor before it was rounded.

    Returns:
        The largest difference of logits.

    Raises:
        UserError: they do not agree.
    """
    source, weights = read_source(directory), WeightFiles(directory)
    loaded = empty_model(source, weights)
    stream_parameters(loaded, lambda names: weights.read(_present(names, weights.stored)))
    with torch.inference_mode():
        found = loaded(_probe(source.table.source.vocabulary), use_cache=False).logits
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


def stream_parameters(model: nn.Module, read: Callable[[list[str]], Tensor]) -> None:
    """Have every module read its parameters before its forward and drop them after it.

    Args:
        model: with all parameters on the meta device.
        read: from the names of a parameter (a tied one has several) to its value.
    """
    aliases = parameter_aliases(model)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            names = {name: aliases[parameter] for name, parameter in own.items()}
            module.register_forward_pre_hook(_filler(names, read))
            module.register_forward_hook(_emptier(own))


def _filler(names: dict[str, list[str]], read: Callable[[list[str]], Tensor]) -> Callable[..., Any]:
    def fill(module: nn.Module, inputs: Any) -> None:
        del inputs
        for name, known_as in names.items():
            value = read(known_as).to(torch.float32)
            setattr(module, name, nn.Parameter(value, requires_grad=False))

    return fill


def _emptier(empty: dict[str, nn.Parameter]) -> Callable[..., Any]:
    def drop(module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs, output
        for name, parameter in empty.items():
            setattr(module, name, parameter)

    return drop


def _gated_model(original: Original, table: CouplingTable, gates: Gates) -> PreTrainedModel:
    """The source model with the checkpoint's weights under its deterministic gates."""
    config = AutoConfig.for_model(**original.config)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False
        )
    model.tie_weights()
    model.eval()
    if gates:
        sites = insert_gates(model, table)
        set_gates(sites, table, gates)
        _gate_activations([site.module for site in sites])
    stored = set(original.names())
    stream_parameters(model, lambda names: original.read(_present(names, stored)))
    return model


def _gate_activations(modules: Iterable[nn.Module]) -> None:
    """Have projections gate what goes in and comes out, as the method is defined.

    It is the same function as the product of weight and gates that training computes, without the
    copy of every weight, and independent of the products that were written.
    """
    for module in modules:
        if not isinstance(module, GatedLinear):
            continue  # hooks are given the module, its inputs and, after it, its output
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
                f"the exported {name} holds values that {stored.dtype} cannot; nothing was kept: "
                "export with --dtype bfloat16 or float32"
            )


def _present(names: list[str], stored: Any) -> str:
    return next(name for name in names if name in stored)


def _probe(vocabulary: int) -> Tensor:
    """A few rows of random tokens, the same each time."""
    return torch.randint(0, vocabulary, PROBE, generator=torch.Generator().manual_seed(0))
