"""A plan as text of 80 columns, and as plain values for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmshearing.architecture.budget import Budget
from llmshearing.architecture.flops import FORMULA
from llmshearing.architecture.shape import Shape
from llmshearing.mixture.usage import use_table
from llmshearing.planning.inputs import DomainData
from llmshearing.planning.memory import GPU_FRAGMENTATION, gib
from llmshearing.planning.plan import Plan
from llmshearing.planning.state import exported_parameters

WIDTH = 80


def as_text(plan: Plan) -> str:
    """Everything, in the order in which one asks: what, does it fit, how long, how much."""
    parts = [_what(plan), _memory(plan), _verdict(plan), _time(plan), _disk(plan), _data(plan)]
    lines = "\n\n".join(part for part in parts if part).splitlines()
    return "\n".join(wrapped for line in lines for wrapped in _wrapped(line)) + "\n"


def as_dict(plan: Plan) -> dict[str, Any]:
    """The same numbers, in bytes, tokens and hours."""
    inputs, when, speed = plan.inputs, plan.schedule, plan.speed
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
        "schedule": asdict(when),
        "speed": None if speed is None else asdict(speed),
        "hours": plan.train_hours,
        "eval_hours": plan.eval_hours,
        "gpu_hours": _times(plan.train_hours, plan.machine.count),
        "eval_gpu_hours": _times(plan.eval_hours, plan.machine.count),
        "disk": plan.disk,
        "domains": [asdict(domain) for domain in inputs.domains],
        "passes": {use.source.name: use.passes for use in plan.use},
        "assumptions": inputs.notes,
    }


def _wrapped(line: str) -> list[str]:
    """A line in pieces that fit, the later ones set in; long names and paths come from the user."""
    if len(line) <= WIDTH:
        return [line]
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False, replace_whitespace=False
    )


def _what(plan: Plan) -> str:
    inputs, job, device = plan.inputs, plan.job, plan.machine.device
    table = inputs.table
    lines = [f"model    {_shape(table.source, table.parameter_count(table.source))}"]
    if isinstance(inputs.target, Budget):
        axes = ", ".join(axis.value for axis in inputs.target.axes)
        lines.append(f"target   {inputs.target.parameters:,} parameters at most, along {axes}")
    elif inputs.target is not None:
        lines.append(f"target   {_shape(inputs.target, table.parameter_count(inputs.target))}")
    memory = "" if device.memory is None else f" of {gib(device.memory):.1f} GiB"
    count = plan.machine.count
    many = "x" if device.is_gpu else "process on" if count == 1 else "processes on"
    lines.append(f"devices  {count} {many} {device.name}{memory}, {_sharing(plan)}")
    recompute = "blocks recomputed" if job.checkpointing else "nothing recomputed"
    lines += [
        f"step     {job.rank_batch * job.ranks} rows of {job.sequence_length:,} tokens; "
        f"{job.rank_batch} a rank, {job.train_batch.rows} a pass",
        f"         {job.precision}, {recompute} in the backward pass",
    ]
    lines += [f"note     {note}" for note in inputs.notes]
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    peak, state = plan.memory.peak, plan.memory.state
    lines = [_heading("Memory of a rank, GiB"), f"{'state':<26}{'this rank':>12}{'whole run':>12}"]
    for name in ("parameters", "masks", "gradients", "optimizer", "total"):
        mine, all_of_it = getattr(state, name), getattr(plan.whole, name)
        if all_of_it:
            lines.append(f"  {name:<24}{_gib(mine):>12}{_gib(all_of_it):>12}")
    lines.append("one pass")
    lines.append(f"  {'saved for the backward':<24}{_gib(plan.memory.saved):>12}")
    lines.append(f"  {'logits of a chunk':<24}{_gib(plan.memory.logits):>12}")
    lines += ["", f"at its highest: {peak.name}"]
    lines += [f"  {name:<24}{_gib(size):>12}" for name, size in peak.parts.items()]
    lines.append(f"  {'total':<24}{_gib(peak.total):>12}")
    others = [m for m in plan.memory.moments if m is not peak]
    lines.append("elsewhere")
    lines += [f"  {moment.name:<24}{_gib(moment.total):>12}" for moment in others]
    if "allowance" in peak.parts:
        lines.append(
            f"allowance: 1 GiB for the GPU's context and {GPU_FRAGMENTATION:.0%} for fragmentation"
        )
    return "\n".join(lines)


def _verdict(plan: Plan) -> str:
    limit = plan.machine.device.memory
    if limit is None:
        return ""
    peak = f"{gib(plan.memory.peak.total):.1f} of {gib(limit):.1f} GiB"
    if plan.fits:
        return f"It fits: {peak}."
    lines = [f"It does not fit: {peak}. Tried, in order of what it costs:"]
    shown = plan.tried if len(plan.tried) <= 8 else [*plan.tried[:6], *plan.tried[-1:]]
    for number, option in enumerate(shown):
        if number == 6 and len(plan.tried) > len(shown):
            lines.append(f"  ... {len(plan.tried) - len(shown)} more")
        lines.append(f"  {gib(option.peak):8.1f} GiB  {' '.join(option.changes)}")
    if plan.option is None:
        lines.append("None of these fits: take GPUs with more memory, or shorter rows.")
    else:
        lines.append(f"The first that fits: {' '.join(plan.option.changes)}")
    return "\n".join(lines)


def _time(plan: Plan) -> str:
    when, speed, count = plan.schedule, plan.speed, plan.machine.count
    lines = [
        _heading("Time"),
        f"{when.steps:,} steps, {_count(when.tokens)} tokens; {when.flops_per_token / 1e9:,.2f} "
        f"GFLOP per token",
        f"  = {FORMULA}",
    ]
    if speed is None:
        lines.append("no speed: this device's peak is not known; give --run RUN_DIR of a run on it")
        return "\n".join(lines)
    rate = speed.achieved / when.flops_per_token
    utilisation = "" if speed.mfu is None else f"MFU {speed.mfu:.3g} "
    lines += [
        f"speed: {utilisation}{speed.source}",
        f"  {rate:,.0f} tokens/s per device",
        f"{'':<14}{'hours':>12}{'GPU hours':>14}",
        _time_row("steps", plan.train_hours, count),
        _time_row(f"{when.evaluations} evaluations", plan.eval_hours, count),
        _time_row("total", (plan.train_hours or 0) + (plan.eval_hours or 0), count),
    ]
    return "\n".join(lines)


def _disk(plan: Plan) -> str:
    lines = [_heading("Disk, GB")]
    lines += [f"  {name:<34}{size / 1e9:>12,.2f}" for name, size in plan.disk.items()]
    lines.append(f"  {'total':<34}{sum(plan.disk.values()) / 1e9:>12,.2f}")
    return "\n".join(lines)


def _data(plan: Plan) -> str:
    heading = _heading("Data, if the weights stay as they are")
    if plan.use:
        rows = str(use_table(plan.use, plan.inputs.sequence_length)).splitlines()
        return "\n".join([heading, *(line for row in rows for line in _folded(row))])
    if not plan.inputs.domains:
        return ""
    tokens = plan.schedule.tokens
    return "\n".join([heading, *_shares(plan.inputs.domains, tokens)])


def _shares(domains: Sequence[DomainData], tokens: int) -> list[str]:
    width = max(len("domain"), *(len(domain.name) for domain in domains))
    lines = [f"{'domain':<{width}}  weight  {'tokens':>12}"]
    lines += [
        f"{domain.name:<{width}}  {domain.weight:.4f}  {_count(domain.weight * tokens):>12}"
        for domain in domains
    ]
    return lines


def _folded(row: str) -> list[str]:
    """A row of the table of use; what happens at its end goes to a line of its own."""
    if len(row) <= WIDTH:
        return [row]
    front, mark, end = row.partition("  used up: ")
    return [front, f"    used up: {end}"] if mark else [row]


def _sharing(plan: Plan) -> str:
    job = plan.job
    if job.ranks == 1:
        return "nothing to share"
    if not job.sharded:
        return "one replica each (ddp)"
    groups = job.ranks // job.shards
    copies = f", {groups} copies" if groups > 1 else ""
    return f"sharded over {job.shards} ({job.parallelism}){copies}"


def _shape(shape: Shape, parameters: int) -> str:
    heads = f"{shape.heads} heads"
    if shape.kv_groups != shape.heads:
        heads += f" in {shape.kv_groups} groups"
    return (
        f"{parameters:,} parameters\n         hidden {shape.hidden}, {shape.layers} layers, "
        f"{heads} of {shape.head_dim}, intermediate {shape.intermediate}"
    )


def _heading(title: str) -> str:
    return f"-- {title} ".ljust(WIDTH, "-")


def _gib(size: int) -> str:
    if 0 < gib(size) < 0.0005:
        return "<0.001"
    return f"{gib(size):,.3f}" if gib(size) < 10 else f"{gib(size):,.1f}"


def _count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:,.2f}{name}"
    return f"{number:,.0f}"


def _time_row(name: str, hours: float | None, count: int) -> str:
    return f"  {name:<18}{hours or 0:>8,.2f}{(hours or 0) * count:>14,.2f}"


def _times(hours: float | None, count: int) -> float | None:
    return None if hours is None else hours * count
