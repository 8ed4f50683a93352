"""The machine's limits, measured in the same run, and the least time that a case could take.

No call is faster than the largest of three times: the bytes it must move, reading each input and writing each output
once, at the rate of a large copy; the operations of its products at the rate of a large product; and, only for ours,
the exchange of the state between the programs of a launch (bench/measure/exchange_floor.py), step after step. The
three can overlap, so they are not added.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from bench.measure.cases import EPS, Case
from bench.measure.pair import DTYPES
from bench.measure.parity import tf32
from bench.measure.rows import Row, number, shapeless
from bench.measure.timing import interleaved, spread, timer_for

COPY = "copy"
COPIED = {"cuda": 2**30, "cpu": 2**27}  # bytes, far more than any cache holds
SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices
KINDS = {("fp32", False): "fp32", ("fp32", True): "fp32-tf32", ("fp16", False): "fp16", ("bf16", False): "bf16"}
BYTES, OPERATIONS, EXCHANGE = "bytes", "operations", "exchange"


@dataclass(frozen=True)
class Ceiling:
    """``rate``: bytes per second of a copy (read and written), or operations per second of a product."""

    ms: float
    spread: float
    rounds: int
    rate: float


Ceilings = Mapping[str, Ceiling]  # of `COPY` and of each of `KINDS`


def measure(device: torch.device, limit_s: float = 2.0) -> dict[str, Ceiling]:
    """Each in turn; on a CPU, without tensor cores, only the fp32 product."""
    kinds = KINDS if device.type == "cuda" else {("fp32", False): "fp32"}
    return {COPY: copy(device, limit_s), **{kinds[key]: product(device, *key, limit_s) for key in kinds}}


def copy(device: torch.device, limit_s: float) -> Ceiling:
    source = torch.randn(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return timed(device, lambda: target.copy_(source), 2 * COPIED[device.type], limit_s)


def product(device: torch.device, dtype: str, switch: bool, limit_s: float) -> Ceiling:
    side = SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device, dtype=DTYPES[dtype]).unbind()
    out = torch.empty_like(a)
    with tf32(switch):
        return timed(device, lambda: torch.mm(a, b, out=out), 2 * side**3, limit_s)


def timed(device: torch.device, call: Callable[[], object], amount: int, limit_s: float) -> Ceiling:
    samples = interleaved(timer_for(device), {"": call}, limit_s=limit_s)[""]
    ms = statistics.median(samples)
    return Ceiling(ms, spread(samples), len(samples), 1000 * amount / ms)


def kind_of(case: Case) -> str:
    return KINDS[case.dtype, case.tf32]


def operations(case: Case) -> int:
    """Multiplications and additions of the products of inputs and state with their weights; in training as many again
    for the gradients of each of the two factors."""
    widths = [case.width] + [case.directions * case.hidden] * (case.layers - 1)
    forward = sum(2 * 3 * case.hidden * (width + case.hidden) for width in widths)
    return forward * case.directions * case.batch * case.time * (3 if case.mode == "train" else 1)


def moved(case: Case) -> int:
    """Bytes of all inputs and outputs of a call; values between layers could stay on chip."""
    widths = [case.width] + [case.directions * case.hidden] * (case.layers - 1)
    weights = sum(3 * case.hidden * (width + case.hidden + 2) for width in widths) * case.directions
    steps, states = case.time * case.batch, 2 * case.layers * case.directions * case.batch * case.hidden
    values = steps * (case.width + case.directions * case.hidden) + weights + states
    # In training the gradient of everything but h0 and h_n, which are not requested.
    values += values - states if case.mode == "train" else 0
    return values * (2 if EPS[case.dtype] > EPS["fp32"] else 4)


def least(case: Case, ceilings: Ceilings | None, exchange_ms: float | None) -> tuple[float | None, str | None]:
    """The least milliseconds of the case on this machine, given the time of its launch's exchange, and the term that
    decides; None without ceilings."""
    if ceilings is None or kind_of(case) not in ceilings:
        return None, None
    terms = {
        BYTES: 1000 * moved(case) / ceilings[COPY].rate,
        OPERATIONS: 1000 * operations(case) / ceilings[kind_of(case)].rate,
        EXCHANGE: exchange_ms or 0.0,
    }
    bound = max(terms, key=lambda name: terms[name])
    return terms[bound], bound


def row_of(name: str, found: Ceiling, where: Row) -> Row:
    about = shapeless(f"ceiling-{name}", "torch", where, ms=found.ms, spread=found.spread, rounds=found.rounds)
    return about | {"rate": number(found.rate)}
