"""Benchmark scores of a model in training. A loss can fall while an ability is lost."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from composer.core import Callback, Event, State
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from transformers import AutoTokenizer

from llmshearing.callbacks.held_out import EvaluationTimes
from llmshearing.config import EvaluationSettings
from llmshearing.evaluation.benchmarks import language_model, load_tasks, score
from llmshearing.models.gated import set_gates
from llmshearing.models.shearing import ShearingModel, unwrapped
from llmshearing.quantities import steps
from llmshearing.tasks.suite import read_suite

log = logging.getLogger(__name__)


class TaskScores(Callback):
    """Scores the model on a suite at an interval and after the last step.

    With masks the model is cut to its current size, as for the held-out loss. Every rank scores all
    documents, in step with the others, since a sharded model needs all ranks for a forward pass.
    The cost is that of the forward passes, so set `evaluation.limit` on large suites.

    The tokenizer is that of the directory `model`; `report` is called with the current activity.

    Raises:
        UserError: no lm-eval, an unknown task, or data that cannot be loaded.
    """

    def __init__(
        self, settings: EvaluationSettings, model: Path, report: Callable[[str], None]
    ) -> None:
        self.suite = read_suite(settings.suite, settings.tasks)
        documents = None if settings.documents is None else Path(settings.documents)
        with unchanged_generators():
            self.loaded = load_tasks(self.suite, documents=documents)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.due, self.report = EvaluationTimes(steps(settings.interval)), report
        self.limit, self.batch_size = settings.limit, settings.batch_size

    def batch_end(self, state: State, logger: Logger) -> None:
        """Score if it is time."""
        if self.due(state, Event.BATCH_END):
            self._score(state, logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Score when the data is used up."""
        if self.due(state, Event.EPOCH_END):
            self._score(state, logger)

    def _score(self, state: State, logger: Logger) -> None:
        model = unwrapped(state.model)
        found = {}
        with unchanged_generators(), cut_to_size(model), get_precision_context(state.precision):
            judged = language_model(model.model, self.batch_size, tokenizer=self.tokenizer)
            for task in self.suite.tasks:
                self.report(f"the benchmark {task.column}")
                one = score(
                    judged,
                    self.loaded[task.task],
                    task,
                    limit=self.limit,
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                )
                if one is not None:  # this rank is the first of its node
                    found[task.column] = one
        logger.log_metrics({f"tasks/{name}": one.value for name, one in found.items()})
        errors = {name: one.error for name, one in found.items() if one.error is not None}
        logger.log_metrics({f"task_errors/{name}": error for name, error in errors.items()})
        log.info(
            "benchmarks, percent with standard errors: %s",
            ", ".join(
                f"{name} {one.value:.1f}" + (f" ({errors[name]:.1f})" if name in errors else "")
                for name, one in found.items()
            ),
        )


@contextmanager
def cut_to_size(model: ShearingModel) -> Iterator[None]:
    """Within the block the model has no noise and is cut to its current size."""
    training = model.training
    model.eval()
    if model.masks is not None:
        set_gates(model.sites, model.masks.table, model.masks().detached().gates)
    with torch.no_grad():
        yield
    model.train(training)


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Give every random generator back as it was: lm-eval draws from them and seeds them."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(array)
