"""What a run says when a loss or a gradient is not finite: where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llmshearing.errors import UserError
from llmshearing.models.shearing import ShearingModel, unwrapped

MOST = 8  # ranks, samples and parameters that a message names


class RowGradients:
    """Per row of the batch the sum of the gradient that reaches the token embeddings.

    A parameter's gradient is a mean over rows and ranks by the time anyone sees it. What flows back
    to a row's embeddings is its own, and whatever is not finite on the way makes it so. Sums stay
    on the device; nothing is read unless something is wrong.
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def attach(self, model: ShearingModel) -> None:
        """Follow a model's backward passes."""
        embeddings: Any = model.model.get_input_embeddings()
        embeddings.register_forward_hook(self._follow)

    def clear(self) -> None:
        """Forget a step."""
        self.sums.clear()

    def odd_rows(self) -> list[int]:
        """Rows of this rank's batch whose gradient was not finite since the last `clear`."""
        return (~torch.cat(self.sums).isfinite()).nonzero().flatten().tolist() if self.sums else []

    def _follow(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        if output.requires_grad:
            output.register_hook(lambda gradient: self.sums.append(gradient.float().sum((1, 2))))


def not_finite(
    state: State, what: str, domains: Sequence[str], odd_rows: Sequence[int] = ()
) -> UserError:
    """The error that names step, ranks, domains and samples; every rank has to call this.

    Args:
        state: of the trainer, within or right after the step.
        what: `loss` or `gradient`.
        domains: their names.
        odd_rows: rows of this rank's batch that are known to be its cause.
    """
    reports: list[dict[str, Any]] = dist.all_gather_object(_report(state, domains, odd_rows))
    culprits = [report for report in reports if report["odd"]]
    if culprits:
        where = "; ".join(
            f"on rank {report['rank']} in {', '.join(dict.fromkeys(report['odd'].values()))} "
            f"(samples {_some(list(report['odd']))})"
            for report in culprits[:MOST]
        )
        where += f"; and on {len(culprits) - MOST} ranks more" if len(culprits) > MOST else ""
    else:
        samples = [sample for report in reports for sample in report["samples"]]
        present = dict.fromkeys(name for report in reports for name in report["domains"])
        where = (
            f"in {_some(reports[0]['parameters'])}, though no row's own was (samples "
            f"{min(samples)} to {max(samples)} of {', '.join(present)} on rank"
            f"{'s 0 to ' if len(reports) > 1 else ' '}{len(reports) - 1})"
        )
    return UserError(
        f"found a {what} that is not finite at step {reports[0]['step']}, {where}; no checkpoint "
        "has seen it: lower the learning rate or look at these samples, and start again from the "
        "last one"
    )


def _report(state: State, domains: Sequence[str], odd_rows: Sequence[int]) -> dict[str, Any]:
    """What this rank can say."""
    samples = state.batch["sample_id"].tolist()
    names: list[str] = [domains[int(number)] for number in state.batch["domain"]]
    return {
        "rank": dist.get_global_rank(),
        "step": state.timestamp.batch.value,
        "samples": samples,
        "domains": sorted(set(names)),
        "odd": {samples[row]: names[row] for row in odd_rows},
        "parameters": [
            name
            for name, parameter in unwrapped(state.model).named_parameters()
            if parameter.grad is not None and not _finite(parameter.grad)
        ],
    }


def _finite(gradient: Tensor) -> bool:
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return bool(local.isfinite().all())


def _some(things: Sequence[Any]) -> str:
    shown = ", ".join(str(thing) for thing in things[:MOST])
    return f"{shown} and {len(things) - MOST} more" if len(things) > MOST else shown or "a loss"
