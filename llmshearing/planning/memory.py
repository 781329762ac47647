"""Memory of one rank over a step: the highest moment of each phase, and the peak.

Follows Composer and PyTorch through a step, layer by layer: forward, loss, a backward pass in which
gradients appear as activations go, optimizer, and the evaluation between steps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmshearing.architecture.coupling import CouplingTable
from llmshearing.config import ModelSettings
from llmshearing.planning.activations import (
    Batch,
    Numbers,
    activations,
    elements,
    inner_projections,
    numbers_of,
)
from llmshearing.planning.devices import GIB
from llmshearing.planning.state import StateBytes, Target, pruned_axes, state_bytes

# Memory of a GPU beyond tensors: for context and libraries, and the part of the rest that the
# allocator cannot use. These are allowances, not measurements.
GPU_CONTEXT = GIB
GPU_FRAGMENTATION = 0.03
# What memory is used for, in the order of the table.
PARTS = (
    "parameters",
    "gradients",
    "optimizer",
    "teacher",
    "activations",
    "logits",
    "gathered",
    "buckets",
    "workspace",
    "allowance",
)


# Bytes per logit of a chunk while a divergence is computed: float32 logits, both distributions,
# their difference and a mask; the Jensen-Shannon divergence has the mixture and its workspace too.
DIVERGENCE_BYTES = {"forward_kl": 17, "reverse_kl": 20, "jsd": 25}


@dataclass(frozen=True)
class TeacherJob:
    """A frozen model next to the one that is trained."""

    table: CouplingTable  # of the teacher
    number: int  # bytes of a weight and of an activation
    offloaded: bool  # whether its weights wait in host memory between its forward passes
    divergence: str  # its name in the recipe
    # whether that needs no distribution of the model other than that of the cross entropy
    shared: bool = False


@dataclass(frozen=True)
class Job:
    """Everything that the memory of a rank depends on."""

    config: Mapping[str, Any] = field(repr=False)  # of the model that is trained, complete
    table: CouplingTable  # of the same model
    target: Target  # what to prune to, or None
    constraint: str  # form of the pruning constraint
    microbatch: int  # rows per forward pass of a rank
    rank_batch: int  # rows per step of a rank
    eval_batch: int  # rows per evaluation batch of a rank
    sequence_length: int  # tokens in a row
    precision: str = "fp32"  # `fp32` or `amp_bf16`
    checkpointing: bool = False  # whether blocks are recomputed in the backward pass
    parallelism: str = "ddp"  # `ddp`, `fsdp1` or `fsdp2`
    ranks: int = 1  # of the run
    shards: int = 1  # ranks that share each tensor; 1 without sharding
    gpu: bool = True  # whether the device is a GPU
    # tokens whose logits exist at the same time; 0 for all of a microbatch
    loss_chunk: int = ModelSettings.model_fields["loss_chunk"].default
    teacher: TeacherJob | None = None  # of a run with distillation

    @property
    def sharded(self) -> bool:
        """Whether parameters are gathered for each layer."""
        return self.shards > 1

    @property
    def train_batch(self) -> Batch:
        """One forward pass in training; a rank's batch may be smaller than a microbatch."""
        return Batch(min(self.microbatch, self.rank_batch), self.sequence_length)

    @property
    def accumulates(self) -> bool:
        """Whether a step has several backward passes."""
        return self.rank_batch > self.microbatch

    @property
    def numbers(self) -> Numbers:
        """The types that it computes with."""
        return numbers_of(self.precision, sharded=self.sharded)


@dataclass(frozen=True)
class Moment:
    """The use of memory at one point of a step."""

    name: str  # of the phase
    parts: Mapping[str, int]  # bytes by what they are used for

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of one rank."""

    state: StateBytes  # parameters, gradients and optimizer state
    saved: int  # bytes that one forward pass saves for the backward pass, in all layers
    logits: int  # of a chunk of the loss, with its workspace
    moments: list[Moment] = field(default_factory=list)  # the highest moment of each phase

    @property
    def peak(self) -> Moment:
        """The moment with most bytes."""
        return max(self.moments, key=lambda moment: moment.total)


def plan_memory(job: Job) -> MemoryPlan:
    """The highest moment of each phase of a step."""
    walk = _Walk(job)
    highest: dict[str, Moment] = {}
    for moment in walk.moments():
        best = highest.get(moment.name)
        if best is None or moment.total > best.total:
            highest[moment.name] = moment
    return MemoryPlan(walk.state, walk.all_saved, walk.logits, list(highest.values()))


class _Walk:
    """The sizes of a job, and its moments in order."""

    def __init__(self, job: Job) -> None:
        self.job, self.numbers = job, job.numbers
        table, batch = job.table, job.train_batch
        self.layers = table.source.layers
        self.axes = pruned_axes(table, job.target)
        self.state = state_bytes(table, job.target, job.constraint, job.shards)
        self.kept = activations(job.config, table, batch, self.numbers, self.axes)
        self.logits = _chunk_bytes(job, batch, job.teacher)
        of_layer = elements(table, per_layer=True)
        self.layer, self.matrix = sum(of_layer), max(of_layer)
        self.outer = sum(elements(table, per_layer=False))
        self.head = table.source.vocabulary * table.source.hidden
        self.stored = self.kept.stream if job.checkpointing else self.kept.layer
        self.all_saved = self.layers * self.stored + self.kept.rest + self.kept.weights

    def moments(self) -> Iterator[Moment]:
        """The moments of a step's last pass, in which earlier passes have left gradients."""
        before = self.state.gradients if self.job.accumulates else 0
        if self.job.teacher is not None:
            yield self._teacher_pass(self.job.teacher, before)
        yield self._moment(
            "loss",
            gradients=before,
            activations=self.all_saved,
            logits=self.logits + self._head_gradients() + self._from_teacher(),
        )
        for layer in reversed(range(self.layers)):
            yield self._backward(layer, before)
        yield self._moment(
            "embedding",
            gradients=max(before, self.state.gradients),
            workspace=4 * self.head if self.job.accumulates or self.job.sharded else 0,
        )
        yield self._moment(
            "optimizer", gradients=self.state.gradients, workspace=self._optimizer_bytes()
        )
        yield self._evaluation()

    def _backward(self, layer: int, before: int) -> Moment:
        """The backward pass of one layer: activations below are saved, gradients above done."""
        done = 4 * (self.head + (self.layers - layer) * self.layer) // self.job.shards
        live = layer * self.stored + self.kept.layer + self.kept.rest + self.kept.weights
        if self.job.checkpointing:
            live += self.stored
        return self._moment(
            "backward",
            gradients=max(before, min(done, self.state.gradients)),
            activations=live,
            workspace=self._layer_workspace(),
        )

    def _layer_workspace(self) -> int:
        """Temporary gradients of a layer's activations and of its gated weights."""
        shape, tokens = self.job.table.source, self.job.train_batch.tokens
        flow = tokens * (2 * shape.hidden + 2 * shape.intermediate) * self.numbers.compute
        weight = 4 * self.matrix
        if self.axes:
            return flow + 3 * weight
        return flow + (weight if self.job.accumulates or self.numbers.casts else 0)

    def _head_gradients(self) -> int:
        """Gradients of the output head and of its input, which the loss computes in advance."""
        tokens, hidden = self.job.train_batch.tokens, self.job.table.source.hidden
        return 4 * self.head + tokens * hidden * self.numbers.compute

    def _teacher_pass(self, teacher: TeacherJob, gradients: int) -> Moment:
        """The teacher's decoder, before the model's own forward pass."""
        whole = teacher.number * teacher.table.parameter_count(teacher.table.source)
        layer = teacher.number * sum(elements(teacher.table, per_layer=True))
        outer = teacher.number * sum(elements(teacher.table, per_layer=False))
        brought = whole if teacher.offloaded and not self.job.sharded else 0
        return self._moment(
            "teacher",
            gradients=gradients,
            activations=_layer_bytes(teacher.table, self.job.train_batch, teacher.number),
            workspace=brought + (outer + 2 * layer if self.job.sharded else 0),
        )

    def _from_teacher(self) -> int:
        """The teacher's hidden states, and its head where that is not already whole here."""
        teacher = self.job.teacher
        if teacher is None:
            return 0
        shape = teacher.table.source
        numbers = self.job.train_batch.tokens * shape.hidden
        if self.job.sharded or teacher.offloaded:
            numbers += shape.vocabulary * shape.hidden
        return numbers * teacher.number

    def _resident_teacher(self) -> int:
        """Bytes of the teacher's weights that stay on the device."""
        teacher = self.job.teacher
        if teacher is None or teacher.offloaded:
            return 0
        parameters = teacher.table.parameter_count(teacher.table.source)
        return teacher.number * parameters // self.job.shards

    def _optimizer_bytes(self) -> int:
        """AdamW's roots of second moments: of all tensors at once on a GPU, otherwise of one."""
        if self.job.gpu:
            return self.state.parameters + self.state.masks
        return 2 * 4 * max(self.head, self.matrix) // self.job.shards

    def _evaluation(self) -> Moment:
        """A forward pass without a graph. Gradients stay until the next step starts."""
        batch = Batch(self.job.eval_batch, self.job.sequence_length)
        stream = batch.tokens * self.job.table.source.hidden * self.numbers.stream
        layer = _layer_bytes(self.job.table, batch, self.numbers.compute) + 2 * stream
        logits = _chunk_bytes(self.job, batch) + (2 * self.head if self.numbers.casts else 0)
        # The logits come when the last layer is done.
        highest = {"activations": layer, "logits": 0}
        if logits + stream > layer:
            highest = {"activations": stream, "logits": logits}
        return self._moment("evaluation", gradients=self.state.gradients, **highest)

    def _moment(self, name: str, **parts: int) -> Moment:
        everything = {
            "parameters": self.state.parameters + self.state.masks,
            "optimizer": self.state.optimizer,
            "teacher": self._resident_teacher(),
            **parts,
            **self._parallel_bytes(name),
        }
        if self.job.gpu:
            tensors = sum(everything.values())
            everything["allowance"] = GPU_CONTEXT + round(GPU_FRAGMENTATION * tensors)
        assert everything.keys() <= set(PARTS)
        return Moment(name, {part: everything[part] for part in PARTS if everything.get(part)})

    def _parallel_bytes(self, phase: str) -> dict[str, int]:
        """What replicas and shards need beyond their own part.

        DDP copies gradients into buckets. FSDP2 keeps gathered: everything outside the layers, the
        layer in use, and the next one with the buffer it arrives in. In the backward pass it also
        holds the whole gradients of a layer and the float32 buffer in which they are reduced.
        """
        if not self.job.sharded:
            replicas = self.job.ranks > 1
            return {"buckets": self.state.parameters + self.state.masks} if replicas else {}
        if phase == "optimizer":
            return {}
        size = self.numbers.compute
        gathered = size * (self.outer + 3 * self.layer)
        if phase == "backward":
            return {"gathered": gathered + size * self.head + (size + 4) * self.layer}
        if phase == "embedding":
            return {"gathered": 2 * size * self.outer + 4 * self.outer}
        return {"gathered": gathered}


def _layer_bytes(table: CouplingTable, batch: Batch, size: int) -> int:
    """Activations of a layer without a graph, except the residual stream."""
    shape = table.source
    units = (1 + inner_projections(table)) * shape.intermediate + 2 * shape.hidden
    return batch.tokens * units * size + batch.rows * batch.length**2 * (1 + size)  # its mask


def _chunk_bytes(job: Job, batch: Batch, teacher: TeacherJob | None = None) -> int:
    """Logits of a chunk in float32, the exponentials for their normaliser, and their cast.

    With a teacher, the larger of that and what the divergence needs.
    """
    chunk = min(job.loss_chunk or batch.tokens, batch.tokens)
    narrow = 0 if job.numbers.compute == 4 else job.numbers.compute
    most = 8 + narrow
    if teacher is not None:  # shared: its distribution, the model's, and an eighth of a difference
        most = 8 + max(1, narrow) if teacher.shared else DIVERGENCE_BYTES[teacher.divergence]
    return chunk * job.table.source.vocabulary * most


def gib(size: float) -> float:
    """Bytes in GiB."""
    return size / GIB
