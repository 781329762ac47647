"""A plan as tables for a terminal, and as plain values for JSON."""

from dataclasses import asdict
from typing import Any, TextIO

from llmshearing.architecture.budget import Budget
from llmshearing.architecture.flops import FORMULA
from llmshearing.architecture.shape import Shape
from llmshearing.mixture.usage import use_table
from llmshearing.planning.memory import GPU_FRAGMENTATION, PARTS, gib
from llmshearing.planning.plan import RunPlan
from llmshearing.planning.state import exported_parameters
from llmshearing.tables import Table

SHOWN_OPTIONS = 8


def show(plan: RunPlan, file: TextIO | None = None) -> None:
    """Print all tables to `file` (standard output)."""
    for number, table in enumerate(as_tables(plan)):
        if number:
            print(file=file)
        table.show(file)


def as_tables(plan: RunPlan) -> list[Table]:
    """What is run, whether it fits, how long it takes, and what it reads and writes."""
    tables = [_run(plan), _state(plan), _peak(plan), _fit(plan), _time(plan), _disk(plan)]
    return [table for table in (*tables, _data(plan)) if table is not None]


def as_dict(plan: RunPlan) -> dict[str, Any]:
    """The same numbers in bytes, tokens and hours."""
    inputs, count = plan.inputs, plan.machine.count
    shape = inputs.table.source
    return {
        "model": {
            "shape": asdict(shape),
            "parameters": inputs.table.parameter_count(shape),
            "target": None if inputs.target is None else asdict(inputs.target),
            "exported_parameters": exported_parameters(inputs.table, inputs.target),
        },
        "machine": asdict(plan.machine),
        "parallelism": plan.job.parallelism,
        "shards": plan.job.shards,
        "state_of_run": asdict(plan.whole),
        "state_of_rank": asdict(plan.memory.state),
        "saved_for_backward": plan.memory.saved,
        "logits": plan.memory.logits,
        "moments": {moment.name: dict(moment.parts) for moment in plan.memory.moments},
        "peak": {"moment": plan.memory.peak.name, "bytes": plan.memory.peak.total},
        "fits": plan.fits,
        "change": None if plan.option is None else asdict(plan.option),
        "tried": [asdict(option) for option in plan.tried],
        "schedule": asdict(plan.schedule),
        "speed": None if plan.speed is None else asdict(plan.speed),
        "hours": plan.train_hours,
        "eval_hours": plan.eval_hours,
        "gpu_hours": None if plan.train_hours is None else plan.train_hours * count,
        "eval_gpu_hours": None if plan.eval_hours is None else plan.eval_hours * count,
        "disk": plan.disk,
        "domains": [asdict(domain) for domain in inputs.domains],
        "passes": {use.source.name: use.passes for use in plan.use},
        "assumptions": inputs.notes,
    }


def _run(plan: RunPlan) -> Table:
    inputs, job, device = plan.inputs, plan.job, plan.machine.device
    table, target, count = inputs.table, inputs.target, plan.machine.count
    rows = [("model", _shape(table.source, table.parameter_count(table.source)))]
    if isinstance(target, Budget):
        axes = ", ".join(axis.value for axis in target.axes)
        rows.append(("target", f"at most {target.parameters:,} parameters, along {axes}"))
    elif target is not None:
        rows.append(("target", _shape(target, table.parameter_count(target))))
    if job.teacher is not None:
        taught = job.teacher.table
        numbers = "bf16" if job.teacher.number == 2 else "float32"
        where = ", in host memory between its passes" if job.teacher.offloaded else ""
        shape = _shape(taught.source, taught.parameter_count(taught.source))
        rows.append(("teacher", f"{shape}; {numbers}{where}"))
    elif (distillation := inputs.recipe.distillation) is not None:
        rows.append(("teacher", f"none in memory: {distillation.cache}"))
    memory = "" if device.memory is None else f" of {gib(device.memory):.1f} GiB"
    recompute = "blocks recomputed" if job.checkpointing else "nothing recomputed"
    rows += [
        ("devices", f"{count} x {device.name}{memory}, {_sharding(plan)}"),
        ("step", f"{job.rank_batch * job.ranks} rows of {job.sequence_length:,} tokens"),
        ("rank", f"{job.rank_batch} rows a step, {job.train_batch.rows} a forward pass"),
        ("numbers", f"{job.precision}, {recompute} in the backward pass"),
    ]
    return Table("", (), [*rows, *(("note", note) for note in inputs.notes)], prose=True)


def _state(plan: RunPlan) -> Table:
    state = plan.memory.state
    rows = [
        (name, _gib(getattr(state, name)), _gib(getattr(plan.whole, name)))
        for name in ("parameters", "masks", "gradients", "optimizer", "total")
        if getattr(plan.whole, name)
    ]
    return Table("State between steps, GiB", ("", "a rank", "all ranks"), rows)


def _peak(plan: RunPlan) -> Table:
    moments, peak = plan.memory.moments, plan.memory.peak
    rows = [
        (part, *(_gib(moment.parts.get(part, 0)) for moment in moments))
        for part in PARTS
        if any(moment.parts.get(part) for moment in moments)
    ]
    rows.append(("total", *(_gib(moment.total) for moment in moments)))
    notes = [f"peak: {peak.name}; a forward pass saves {_gib(plan.memory.saved)}"]
    if "allowance" in peak.parts:
        notes.append(f"allowance: 1 GiB for the GPU's context, {GPU_FRAGMENTATION:.0%} of the rest")
    header = ("", *(moment.name for moment in moments))
    return Table("Memory of a rank during a step, GiB", header, rows, notes)


def _fit(plan: RunPlan) -> Table | None:
    limit = plan.machine.device.memory
    if limit is None:
        return None
    peak = f"{gib(plan.memory.peak.total):.1f} of {gib(limit):.1f} GiB"
    if plan.fits:
        return Table(f"It fits: {peak}.", (), [])
    options = [(f"{gib(option.peak):,.1f}", " ".join(option.changes)) for option in plan.tried]
    if len(options) > SHOWN_OPTIONS:
        left = len(options) - SHOWN_OPTIONS + 1
        options = [*options[: SHOWN_OPTIONS - 2], ("", f"... {left} more"), options[-1]]
    if plan.option is None:
        note = "None of these fits: use GPUs with more memory, or shorter rows."
    else:
        note = f"The first that fits: {' '.join(plan.option.changes)}"
    title = f"It does not fit: {peak}. Changes that were tried, the cheapest first:"
    return Table(title, ("peak GiB", "change"), options, [note], prose=True)


def _time(plan: RunPlan) -> Table:
    when, speed, count = plan.schedule, plan.speed, plan.machine.count
    title = f"Time of {when.steps:,} steps, {_count(when.tokens)} tokens"
    notes = [f"{when.flops_per_token / 1e9:,.2f} GFLOP per token = {FORMULA}"]
    if when.teacher_flops_per_token:
        notes.append(
            f"{when.teacher_flops_per_token / 1e9:,.2f} more for the teacher's forward pass"
        )
    if speed is None or plan.train_hours is None or plan.eval_hours is None:
        notes.append("no speed: this device's peak is not known; give --run RUN_DIR of a run on it")
        return Table(title, (), [], notes)
    rate = speed.achieved * when.tokens / when.flops
    utilisation = "" if speed.mfu is None else f"MFU {speed.mfu:.3g}, "
    notes.append(f"{rate:,.0f} tokens/s per device: {utilisation}{speed.source}")
    times = {
        "steps": plan.train_hours,
        f"{when.evaluations} evaluations": plan.eval_hours,
        "total": plan.train_hours + plan.eval_hours,
    }
    rows = [(name, f"{hours:,.2f}", f"{hours * count:,.2f}") for name, hours in times.items()]
    return Table(title, ("", "hours", "GPU hours"), rows, notes)


def _disk(plan: RunPlan) -> Table:
    sizes = {**plan.disk, "total": sum(plan.disk.values())}
    rows = [(name, f"{size / 1e9:,.2f}") for name, size in sizes.items()]
    return Table("Disk, GB", (), rows)


def _data(plan: RunPlan) -> Table | None:
    title = "Data, if the weights stay as they are"
    if plan.use:
        table = use_table(plan.use, plan.inputs.sequence_length)
        return Table(title, table.header, table.rows)
    if not plan.inputs.domains:
        return None
    tokens = plan.schedule.tokens
    rows = [
        (domain.name, f"{domain.weight:.4f}", _count(domain.weight * tokens))
        for domain in plan.inputs.domains
    ]
    return Table(title, ("domain", "weight", "tokens"), rows)


def _sharding(plan: RunPlan) -> str:
    job = plan.job
    if job.ranks == 1:
        return "one process"
    if not job.sharded:
        return "one replica each (ddp)"
    groups = job.ranks // job.shards
    copies = f", {groups} copies" if groups > 1 else ""
    return f"sharded over {job.shards} ({job.parallelism}){copies}"


def _shape(shape: Shape, parameters: int) -> str:
    groups = f" in {shape.kv_groups} groups" if shape.kv_groups != shape.heads else ""
    return (
        f"{parameters:,} parameters: hidden {shape.hidden}, {shape.layers} layers, "
        f"{shape.heads} heads{groups} of {shape.head_dim}, intermediate {shape.intermediate}"
    )


def _gib(size: int) -> str:
    if gib(size) < 0.0005:
        return "<0.001" if size else "-"
    return f"{gib(size):,.3f}" if gib(size) < 10 else f"{gib(size):,.1f}"


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:,.2f}{name}"
    return f"{number:,.0f}"
