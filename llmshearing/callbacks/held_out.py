"""When to evaluate the held-out rows, and their loss outside the trainer's own loop."""

from collections.abc import Callable, Iterable

import torch
from composer.core import Evaluator, Event, State
from composer.core.precision import get_precision_context

from llmshearing.models.head import TokenLosses
from llmshearing.models.metrics import HeldOutLoss
from llmshearing.models.shearing import Batch, ShearingModel, unwrapped


def at_end(state: State) -> bool:
    """Whether this is the last step: of the run, or of its data."""
    assert state.max_duration is not None
    return state.timestamp.get(state.max_duration.unit) >= state.max_duration


class EvaluationTimes:
    """Evaluates at an interval and at the end of the run, before the last checkpoint.

    Composer's own schedule evaluates the end after the last checkpoint and after the last event of
    the callbacks, which would miss it. The interval is in steps.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.last: int | None = None

    def __call__(self, state: State, event: Event) -> bool:
        """Whether to evaluate now."""
        batch = state.timestamp.batch.value
        if event not in (Event.BATCH_END, Event.EPOCH_END) or batch == self.last:
            return False
        due = at_end(state) or (event == Event.BATCH_END and batch % self.interval == 0)
        if due:
            self.last = batch
        return due


def measure(
    state: State,
    evaluators: Iterable[Evaluator],
    losses_of: Callable[[ShearingModel, Batch], tuple[TokenLosses, torch.Tensor]],
    report: Callable[[str], None],
) -> dict[str, float]:
    """Held-out loss per evaluator's domain, nats per token; all ranks call it together.

    `losses_of` gives the losses of a batch on the device, and which positions have a target;
    `report` gets the activity before each batch.
    """
    model, losses = unwrapped(state.model), {}
    training = model.training
    model.eval()
    for evaluator in evaluators:
        metric = state.device.module_to_device(HeldOutLoss())
        for number, batch in enumerate(evaluator.dataloader.dataloader):
            report(f"the held-out loss of {evaluator.label}, batch {number}")
            with torch.no_grad(), get_precision_context(state.precision):
                found, counted = losses_of(model, state.device.batch_to_device(batch))
                metric.update(found.cross_entropy, counted)
        losses[evaluator.label] = float(metric.compute())
    model.train(training)
    return losses
