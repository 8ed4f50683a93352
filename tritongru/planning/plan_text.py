"""A plan in words. All times are the model's predictions, and are labelled as such."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritongru.planning.instruction_sets import SETS
from tritongru.planning.launches import Launch, PersistentLaunch

if TYPE_CHECKING:
    from tritongru.planning.cost_model import Cost
    from tritongru.planning.cpu_plan import Loop
    from tritongru.planning.plan import Pass, Plan

MODEL = "a model, not a measurement"
RUN, NEVER_RUN = "run", "compiled, never run"  # what is known about the kernels for a chip
PARTS = {
    "exchange": "exchange between programs",
    "l2": "reads from L2",
    "tensor": "tensor cores",
    "shared": "shared memory",
    "issue": "instruction issue",
    "barriers": "barriers",
}


def words(plan: Plan) -> str:
    # The TF32 setting does not affect a CPU's products.
    arithmetic = f"{plan.dtype}, products in {plan.precision}" if plan.precision and plan.passes else plan.dtype
    lines = [f"on {plan.device}, in {arithmetic}", f"{plan.family}: {plan.reason}"]
    for name, found in (("forward", plan.forward), ("backward", plan.backward)):
        if found is not None:
            lines += _pass(found, name, plan.time)
    if plan.kernels == NEVER_RUN:
        lines.append(
            f"  the kernels for {plan.device} are {NEVER_RUN}: neither a GPU nor the PTX machine has executed them"
        )
    if plan.torch_us_per_step is not None:
        us, passes = plan.torch_us_per_step, " and the same backward" if len(plan.passes) > 1 else ""
        lines.append(f"  predicted for torch: {us:.2f} us per step forward{passes} ({MODEL})")
    if plan.loop is not None:
        lines += _loop(plan.loop)
    else:
        lines.append(f"  {_ratio(plan)}")
    lines += _sequences(plan)
    if plan.memory is not None:
        lines += plan.memory.lines()
    return "\n".join(lines)


def _sequences(plan: Plan) -> list[str]:
    """What follows for sequences with lengths or resets, and for one in batches of other sizes."""
    lines = []
    names = " and ".join(name for name in ("lengths", "resets") if getattr(plan, name))
    if names and plan.loop is not None:
        lines.append(f"  {names}: each segment is a row of its own, and padding costs no work")
    elif names and plan.family != "torch":
        lines.append(f"  {names}: kernels compiled for these, which end with the longest sequence of a batch tile")
    elif plan.resets:
        lines.append("  resets: torch's GRU has none, so it runs one time step at a time")
    elif plan.lengths:
        lines.append("  lengths: masks around torch's GRU, which works on the padding as well")
    if plan.loop is not None:
        lines.append("  a sequence has the same bits in every batch")
    elif plan.batches is not None:
        low, high = plan.batches
        lines.append(
            f"  batches of {low} to {high} sequences run the same compiled kernels, where a sequence has the same "
            "bits, given the products of the input, which are torch's"
        )
    return lines


def _pass(found: Pass, name: str, time: int | None) -> list[str]:
    launch = found.launch
    units = sum(launch.chunks) if isinstance(launch, Launch) else launch.block_h
    lines = [
        f"  {name}: {found.family}, {found.programs} program{'s' if found.programs != 1 else ''} of {launch.block_b} "
        f"sequences x {units} hidden units, {launch.num_warps} warps, {launch.shared_bytes} bytes of shared memory each"
    ]
    if isinstance(launch, PersistentLaunch):
        served = f"{found.turns} batch tile{'s' if found.turns != 1 else ''}"
        lines.append(f"    exchange by {launch.exchange}; each program serves {served}")
    if found.cost is not None:
        us = found.cost.us
        whole = "" if time is None else f", {us * time / 1000:.3f} ms for {time} step{'s' if time != 1 else ''}"
        lines.append(f"    predicted: {us:.2f} us per step{whole} ({MODEL})")
        lines.append(f"    {_parts(found.cost)}")
    return lines


def _loop(loop: Loop) -> list[str]:
    tile = f"{loop.rows} sequences x 3 gates x {loop.lanes} hidden units"
    groups = "" if loop.groups == 1 else f", the batch in {loop.groups} groups"
    back = "" if loop.chunk_backward is None else f" forward and {loop.chunk_backward} backward"
    steps = f"{loop.chunk_forward}{back} step{'s' if loop.chunk_forward != 1 or back else ''}"
    return [
        f"  {SETS[loop.isa].title}: register tiles of {tile}",
        f"  {loop.threads} thread{'s' if loop.threads != 1 else ''}{groups}; chunks of {steps}",
        f"  each call packs {loop.weight_bytes} bytes of weights and uses {loop.scratch_bytes} bytes of scratch memory",
    ]


def _parts(cost: Cost) -> str:
    shown = ", ".join(f"{PARTS[name]} {us:.2f}" for name, us in cost.terms.items() if us > 0)
    overlap = "tensor cores, shared memory and issue" if cost.exchange else "shared memory and issue"
    return f"of these us: {shown}{f' ({overlap} overlap)' if cost.shared else ''}"


def _ratio(plan: Plan) -> str:
    what = f"expected speed relative to torch{'' if plan.forward or not plan.passes else ', if the kernel ran'}"
    if plan.expected_ratio_forward is None:
        return f"{what}: unknown, because {_unknown(plan)}"
    figures = f"{plan.expected_ratio_forward:.2f}x forward"
    if len(plan.passes) > 1:
        both = plan.expected_ratio
        figures += f", {'unknown' if both is None else f'{both:.2f}x'} forward and backward together"
    return f"{what}: {figures} ({MODEL}; time loops only)"


def _unknown(plan: Plan) -> str:
    if not plan.passes:
        return "the model covers GPU kernels only, and none was considered"
    return plan.torch_unknown or f"the cost model has no figures for this kernel on {plan.device}"
