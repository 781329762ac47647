"""The plan of a run: from a recipe and devices to memory, time, disk and data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmshearing.architecture.flops import forward_flops_per_token, training_flops_per_token
from llmshearing.errors import UserError
from llmshearing.mixture.settings import domain_source
from llmshearing.mixture.usage import Use, expected_use
from llmshearing.planning import disk
from llmshearing.planning.devices import Device
from llmshearing.planning.fit import Option, first_that_fits
from llmshearing.planning.memory import Job, MemoryPlan, TeacherJob, plan_memory
from llmshearing.planning.plan_inputs import PlanInputs, read_inputs
from llmshearing.planning.state import StateBytes, state_bytes
from llmshearing.planning.time import Schedule, Speed, hours, measured_speed, schedule, stated_speed


@dataclass(frozen=True)
class Machine:
    """The devices of a run."""

    device: Device  # the kind
    count: int = 8  # how many; each has one rank


@dataclass(frozen=True)
class RunPlan:
    """What a run needs."""

    inputs: PlanInputs  # the recipe and what it names
    machine: Machine  # the devices
    job: Job  # everything that the memory of a rank depends on
    memory: MemoryPlan  # of one rank
    whole: StateBytes  # state of the run over all ranks
    # the first change with which the run fits; None if it fits, or if none does
    option: Option | None
    tried: list[Option]  # changes that were tried
    schedule: Schedule  # steps, tokens and operations
    speed: Speed | None  # of one device; None if neither its peak nor a run is known
    disk: dict[str, int]  # bytes by what they are used for
    use: list[Use]  # expected use of each domain; empty without data

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the device's memory; None if that is unknown."""
        limit = self.machine.device.memory
        return None if limit is None else self.memory.peak.total <= limit

    @property
    def train_hours(self) -> float | None:
        """Wall-clock hours of the steps."""
        return hours(self.schedule.flops, self.speed, self.machine.count)

    @property
    def eval_hours(self) -> float | None:
        """Wall-clock hours of the evaluations."""
        return hours(self.schedule.eval_flops, self.speed, self.machine.count)


def make_plan(
    path: str | Path,
    overrides: Sequence[str],
    machine: Machine,
    *,
    mfu: float | None = None,
    run: Path | None = None,
    sequence_length: int | None = None,
) -> RunPlan:
    """Plan a recipe with its overrides on a machine.

    The speed is that of the directory `run`, or follows from `mfu`, the model FLOPs utilisation, by
    default 0.3. `sequence_length` (tokens in a row) is used if there is no data.

    Raises:
        UserError: the recipe, a number or the run directory is wrong; lists every error.
    """
    if machine.count < 1:
        raise UserError(f"--gpus: found {machine.count}, expected 1 or more")
    if mfu is not None and run is not None:
        raise UserError("found both --mfu and --run, expected one of them")
    inputs = read_inputs(path, overrides, sequence_length)
    job = job_of(inputs, machine)
    memory = plan_memory(job)
    limit = machine.device.memory
    option, tried = None, []
    if limit is not None and memory.peak.total > limit:
        option, tried = first_that_fits(job, limit)
    flops = training_flops_per_token(inputs.table, inputs.sequence_length)
    taught = 0
    if inputs.teacher is not None:
        taught = forward_flops_per_token(inputs.teacher, inputs.sequence_length)
    held_out = sum(domain.held_out for domain in inputs.domains)
    when = schedule(inputs.recipe, inputs.sequence_length, flops, held_out, taught)
    device = machine.device
    speed = stated_speed(device, mfu) if run is None else measured_speed(run, device)
    whole = state_bytes(inputs.table, inputs.target, inputs.recipe.pruning.constraint)
    return RunPlan(
        inputs=inputs,
        machine=machine,
        job=job,
        memory=memory,
        whole=whole,
        option=option,
        tried=tried,
        schedule=when,
        speed=speed,
        disk=disk.disk_bytes(
            inputs.recipe, inputs.table, inputs.target, whole, _data_bytes(inputs, when)
        ),
        use=_use(inputs, when),
    )


def job_of(inputs: PlanInputs, machine: Machine) -> Job:
    """Everything that the memory of a rank depends on.

    Raises:
        UserError: the rows of a step are not a multiple of the devices.
    """
    recipe, ranks = inputs.recipe, machine.count
    if recipe.data.global_batch % ranks:
        raise UserError(
            f"data.global_batch: found {recipe.data.global_batch} rows for {ranks} GPUs; "
            "expected a multiple of them: give another --gpus or data.global_batch"
        )
    return Job(
        config=inputs.config,
        table=inputs.table,
        target=inputs.target,
        constraint=recipe.pruning.constraint,
        microbatch=recipe.data.microbatch,
        rank_batch=recipe.data.global_batch // ranks,
        eval_batch=recipe.data.eval_batch,
        sequence_length=inputs.sequence_length,
        precision=recipe.model.precision,
        checkpointing=recipe.model.activation_checkpointing,
        parallelism=recipe.parallelism,
        ranks=ranks,
        shards=1 if recipe.parallelism == "ddp" else min(recipe.shard_ranks or ranks, ranks),
        loss_chunk=recipe.model.loss_chunk,
        gpu=machine.device.is_gpu,
        teacher=_teacher(inputs),
    )


def _teacher(inputs: PlanInputs) -> TeacherJob | None:
    settings = inputs.recipe.distillation
    if settings is None or inputs.teacher is None:
        return None
    return TeacherJob(
        table=inputs.teacher,
        number=2 if settings.narrow_teacher(inputs.recipe.model.precision) else 4,
        offloaded=settings.teacher_sharding == "offload",
        divergence=settings.divergence,
        shared=settings.divergence == "forward_kl"
        and settings.temperature == 1
        and inputs.table.source.vocabulary <= inputs.teacher.source.vocabulary,
    )


def _use(inputs: PlanInputs, when: Schedule) -> list[Use]:
    """The expected use of each domain; empty unless the rows of all are known."""
    settings = inputs.recipe.mixture
    known = [(domain, domain.rows) for domain in inputs.domains if domain.rows]
    if not known or len(known) < len(inputs.domains):
        return []
    sources = [domain_source(settings, domain.name, rows, block=1) for domain, rows in known]
    samples = when.tokens // inputs.sequence_length
    return expected_use(sources, [domain.weight for domain, _ in known], samples)


def _data_bytes(inputs: PlanInputs, when: Schedule) -> int:
    """The tree's rows in both splits; without a tree, the rows that the run would read."""
    size = disk.row_bytes(inputs.sequence_length, inputs.table.source.vocabulary)
    held_out = sum(domain.held_out for domain in inputs.domains)
    if inputs.tree is None:
        return (when.tokens // inputs.sequence_length + held_out) * size
    data, tree = inputs.recipe.data, inputs.tree
    splits = {data.split, data.eval_split}
    return size * sum(info.rows for split in splits for info in tree.split(split).values())
