"""The error of a loss or a gradient that is not finite: which samples it came from."""

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
    """The sum of the gradient at the token embeddings, for each row of the batch.

    The gradient of a parameter is a mean over rows and ranks, which hides the row at fault. The
    gradient at the embeddings is separate for each row, and is non-finite if anything on its way
    back was. The sums stay on the device and are read only after an error.
    """

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def attach(self, model: ShearingModel) -> None:
        """Record the backward passes of a model."""
        embeddings: Any = model.model.get_input_embeddings()
        embeddings.register_forward_hook(self._follow)

    def clear(self) -> None:
        """Drop the sums of a step."""
        self.sums.clear()

    def odd_rows(self) -> list[int]:
        """Rows of this rank's batch whose gradient was not finite."""
        return (~torch.cat(self.sums).isfinite()).nonzero().flatten().tolist() if self.sums else []

    def _follow(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        del module, inputs
        if output.requires_grad:
            output.register_hook(lambda gradient: self.sums.append(gradient.float().sum((1, 2))))


def not_finite(
    state: State, what: str, domains: Sequence[str], odd_rows: Sequence[int] = ()
) -> UserError:
    """The error that names step, ranks, domains and samples; all ranks call this together.

    `what` is `loss` or `gradient`; `odd_rows` are those of this rank's batch whose own gradient was
    not finite.
    """
    reports: list[dict[str, Any]] = dist.all_gather_object(_report(state, domains, odd_rows))
    step = reports[0]["step"]
    weights = _union(reports, "weights")
    if weights and step == 0:
        return UserError(
            f"found a {what} that is not finite at step 0, because weights of the source are not: "
            f"{_some(weights)}. Take another model.path, or convert the model again"
        )
    culprits = [report for report in reports if report["odd"]]
    if culprits:
        where = "; ".join(
            f"on rank {report['rank']} in {', '.join(dict.fromkeys(report['odd'].values()))} "
            f"(samples {_some(list(report['odd']))})"
            for report in culprits[:MOST]
        )
        where += f"; and on {len(culprits) - MOST} more ranks" if len(culprits) > MOST else ""
    else:
        samples = [sample for report in reports for sample in report["samples"]]
        where = (
            f"in {_some(_union(reports, 'parameters')) or 'a loss'}, but in no single row (samples "
            f"{min(samples)} to {max(samples)} of {', '.join(_union(reports, 'domains'))} on rank"
            f"{'s 0 to ' if len(reports) > 1 else ' '}{len(reports) - 1})"
        )
    return UserError(
        f"found a {what} that is not finite at step {step}, {where}. No checkpoint contains it: "
        "lower the learning rate or check these samples, then resume from the last checkpoint"
    )


def _report(state: State, domains: Sequence[str], odd_rows: Sequence[int]) -> dict[str, Any]:
    """What this rank knows."""
    samples = state.batch["sample_id"].tolist()
    names: list[str] = [domains[int(number)] for number in state.batch["domain"]]
    parameters = dict(unwrapped(state.model).named_parameters())
    gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
    return {
        "rank": dist.get_global_rank(),
        "step": state.timestamp.batch.value,
        "samples": samples,
        "domains": sorted(set(names)),
        "odd": {samples[row]: names[row] for row in odd_rows},
        "weights": [name for name, weight in parameters.items() if not _finite(weight)],
        "parameters": [name for name, gradient in gradients.items() if not _finite(gradient)],
    }


def _union(reports: Sequence[dict[str, Any]], key: str) -> list[str]:
    """The names in the reports of all ranks, each once, in order."""
    return list(dict.fromkeys(name for report in reports for name in report[key]))


def _finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(local.isfinite().all())


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:MOST])
    return f"{shown} and {len(names) - MOST} more" if len(names) > MOST else shown
