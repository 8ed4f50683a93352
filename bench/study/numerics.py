"""How rounding errors grow with the length of a sequence: the kernels' rounding, emulated on a CPU by a plain loop.

One layer, from the first step to the last. An implementation is defined by where it rounds; float64 without rounding is
the truth. Two things a GPU adds are left out: the order of its sums, and how its tensor cores accumulate.
The loops and shapes are those of ``tritongru/reference.py``, with the roundings added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.measure.rows import Row, append, facts, file_name, lines_of, number
from tritongru.reference import Gates, Gradients

HIDDEN, BATCH = 64, 8
LENGTHS = tuple(4**power for power in range(8))  # 1 to 16,384
WIDTHS = {256: 4096, 1024: 256}  # more hidden sizes, for TF32, and the longest sequence of each
MEMORY = 4096  # longest time constant of the `long` weights, in steps
SCALE = 2.0**16  # the scale of the loss that torch.amp.GradScaler starts with
ERRORS = ("error_y", "error_dx", "error_dh0", "error_dw_hh")
SHARES = ("zero", "subnormal", "overflow", "largest")
ABOUT = ("case", "kind", "weights", "hidden", "batch", "time", "seed", "format", "impl", "scale")
KEYS = (*ABOUT, *ERRORS, *SHARES, "torch", "commit", "date")
DROPPED = 13  # bits of fp32's mantissa that TF32 lacks
Round = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]

# How a number is rounded


def keep(x: Tensor) -> Tensor:
    return x


def to_tf32(x: Tensor) -> Tensor:
    """fp32 values with 10 explicit bits of mantissa, to nearest, ties away from zero, as ``cvt.rna.tf32.f32`` rounds
    them (``tritongru/kernels/rounding.py``); values that are not finite stay."""
    last = 1 << DROPPED
    nearest = (x.view(torch.int32) + last // 2) & -last
    return torch.where(x.isfinite(), nearest.view(torch.float32), x)


def cut_to_tf32(x: Tensor) -> Tensor:
    """As tensor cores read an fp32 operand that nobody has rounded: they ignore the last bits."""
    cut_off = x.view(torch.int32) & -(1 << DROPPED)
    return torch.where(x.isfinite(), cut_off.view(torch.float32), x)


def to_fp16(x: Tensor) -> Tensor:
    return x.half().to(x.dtype)


def to_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def short_sigmoid(x: Tensor) -> Tensor:
    """The kernels' sigmoid for 16-bit storage (``tritongru/kernels/gates.py``). Near 1, the last bits of fp32 matter:
    another sigmoid would round to other 16-bit values of z - 1."""
    return torch.rsqrt(1 + torch.exp2(x * -1.4426950408889634)).square()


def short_tanh(x: Tensor) -> Tensor:
    """The kernels' tanh for 16-bit storage: x itself near 0."""
    return torch.where(x.abs() < 0.015625, x, 2 * short_sigmoid(2 * x) - 1)


def kept(store: Round) -> Round:
    """z as the backward pass rebuilds it from what the kernels save (``tritongru/kernels/gates.py``): z below 1/2 and
    z - 1 from there on; 1 stays 1. ``store`` rounds to the storage dtype."""

    def rebuilt(z: Tensor) -> Tensor:
        return torch.where((z < 0.5) | (z >= 1), store(z), store(z - 1) + 1)

    return rebuilt


# How a product ``a @ b`` is computed, as a function of a; sums are in fp32


def plain(b: Tensor) -> Product:
    return lambda a: a @ b


def one_tf32(b: Tensor) -> Product:
    b = to_tf32(b)
    return lambda a: to_tf32(a) @ b


def one_cut_tf32(b: Tensor) -> Product:
    b = cut_to_tf32(b)
    return lambda a: cut_to_tf32(a) @ b


def three_tf32(b: Tensor) -> Product:
    """fp32 products from three TF32 ones: the leading parts, and each leading part with the other's remainder. Triton
    rounds the leading parts; it leaves the remainders to the tensor cores, which cut them off."""
    b_high = to_tf32(b)
    b_low = cut_to_tf32(b - b_high)

    def product(a: Tensor) -> Tensor:
        a_high = to_tf32(a)
        a_low = cut_to_tf32(a - a_high)
        return (a_low @ b_high + a_high @ b_low) + a_high @ b_high

    return product


@dataclass(frozen=True)
class Rounding:
    """Where an implementation rounds; by default only in the dtype of the tensors it is given."""

    store: Round = keep  # gx, the operand of the recurrent product, y, dgx, dgh and every gradient
    gates: Round = keep  # r, n and a between forward and backward
    update: Round = keep  # z between forward and backward
    state: Round = keep  # h from step to step
    loop: Callable[[Tensor], Product] = plain  # products inside the time loop
    outside: Callable[[Tensor], Product] = plain  # products over all steps
    sigmoid: Round = torch.sigmoid
    tanh: Round = torch.tanh
    recompute: bool = False  # the gates are recomputed for the backward pass, from stored products and states


NOWHERE = Rounding()
OURS, TORCH, STATE = "ours", "torch CPU", "state rounded at every step"
CUT_OFF = "ours, operands cut off"  # as in the stepwise family
GATES, AS_IT_IS, RECOMPUTE = "ours, gates saved in fp32", "ours, z saved as it is", "ours, gates recomputed"


def in_16_bit(store: Round) -> dict[str, Rounding]:
    """Ours with ``memory="save"``, and variants with one decision changed."""
    ours = Rounding(store, store, kept(store), sigmoid=short_sigmoid, tanh=short_tanh)
    return {
        OURS: ours,
        STATE: replace(ours, state=store),
        GATES: replace(ours, gates=keep, update=kept(keep)),
        AS_IT_IS: replace(ours, update=store),
        RECOMPUTE: replace(ours, recompute=True),
    }


# Format -> implementation -> where it rounds. In fp32 a state rounded to the storage dtype is the same as ours.
FORMATS: dict[str, dict[str, Rounding]] = {
    "fp32": {OURS: Rounding(update=kept(keep), loop=three_tf32)},
    "tf32": {
        OURS: Rounding(update=kept(keep), loop=one_tf32),
        CUT_OFF: Rounding(update=kept(keep), loop=one_cut_tf32),
    },
    "tf32 everywhere": {OURS: Rounding(update=kept(keep), loop=one_tf32, outside=one_tf32)},
    "fp16": in_16_bit(to_fp16),
    "bf16": in_16_bit(to_bf16),
}
STORAGE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def storage_of(form: str) -> str:
    return form if form in STORAGE else "fp32"


# The layer


class Layer(NamedTuple):
    """The arguments of a call; ``dy`` is the gradient of y, and the gradient of hn is zero."""

    x: Tensor
    h0: Tensor
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor
    dy: Tensor

    def to(self, dtype: torch.dtype) -> Layer:
        return Layer(*(tensor.to(dtype) for tensor in self))


def forward(at: Rounding, layer: Layer) -> tuple[Tensor, Tensor, Gates]:
    """``(y, hn, gates)`` as stored."""
    x, h0, w_ih, w_hh, b_ih, b_hh, _ = layer
    T, B, H = *x.shape[:2], h0.shape[1]
    gx = at.store(at.outside(w_ih.t())(x.flatten(0, 1)) + b_ih).view(T, B, 3 * H)
    product = at.loop(w_hh.t())
    steps: list[tuple[Tensor, ...]] = []
    h = h0
    for gx_t in gx:
        gh = product(at.store(h)) + b_hh
        r, z = at.sigmoid(gx_t[:, : 2 * H] + gh[:, : 2 * H]).chunk(2, dim=-1)
        a = gh[:, 2 * H :]
        n = at.tanh(gx_t[:, 2 * H :] + r * a)
        h = at.state(n + z * (h - n))
        steps.append((h, r, z, n, a))
    y, r, z, n, a = (torch.stack(values) for values in zip(*steps, strict=True))
    y = at.store(y)
    if at.recompute:
        h_prev = torch.cat((h0[None], y[:-1])).flatten(0, 1)
        gh = at.store(at.outside(w_hh.t())(h_prev) + b_hh).view_as(gx)
        r, z = at.sigmoid(gx[..., : 2 * H] + gh[..., : 2 * H]).chunk(2, dim=-1)
        a = gh[..., 2 * H :]
        n = at.tanh(gx[..., 2 * H :] + r * a)
    return y, at.store(h), Gates(at.gates(r), at.update(z), at.gates(n), at.gates(a))


def backward(at: Rounding, layer: Layer, y: Tensor, gates: Gates) -> tuple[Gradients, Tensor]:
    """The gradients as stored, and dgh before rounding. The factors of dh are computed before the loop."""
    x, h0, w_ih, w_hh, _, _, dy = layer
    h_prev = torch.cat((h0[None], y[:-1]))
    r, z, n, a = gates
    dn_dh = (1 - z) * (1 - n * n)
    dz_dh = (h_prev - n) * z * (1 - z)
    dgh_dh = torch.stack((dn_dh * a * r * (1 - r), dz_dh, dn_dh * r), dim=2)  # (T, B, 3, H)
    dgh, dhs = torch.empty_like(dgh_dh), torch.empty_like(y)
    product = at.loop(w_hh)
    dh = torch.zeros_like(h0)
    for t in reversed(range(y.shape[0])):
        dh = torch.add(dh, dy[t], out=dhs[t])
        torch.mul(dh[:, None], dgh_dh[t], out=dgh[t])
        dh = dh * z[t] + product(at.store(dgh[t].flatten(1)))
    rows_h = at.store(dgh).flatten(2).flatten(0, 1)
    H = y.shape[2]
    rows_x = torch.cat((rows_h[:, : 2 * H], at.store(dhs * dn_dh).flatten(0, 1)), dim=1)
    found = Gradients(
        x=at.outside(w_ih)(rows_x).view_as(x),
        h0=dh,
        w_ih=at.outside(x.flatten(0, 1))(rows_x.t()),
        w_hh=at.outside(h_prev.flatten(0, 1))(rows_h.t()),
        b_ih=rows_x.sum(0),
        b_hh=rows_h.sum(0),
    )
    return Gradients(*(at.store(grad) for grad in found if grad is not None)), dgh


def torch_cpu(dtype: torch.dtype, layer: Layer) -> tuple[Tensor, Gradients]:
    """y and the gradients of torch.nn.GRU in this dtype, not emulated."""
    gru = torch.nn.GRU(layer.x.shape[2], layer.h0.shape[1], dtype=dtype)
    for parameter, value in zip(gru.parameters(), layer[2:6], strict=True):
        parameter.data.copy_(value)
    x, h0 = (value.to(dtype).requires_grad_() for value in layer[:2])
    y, _ = gru(x, h0[None])
    found = torch.autograd.grad(y, (x, h0, *gru.parameters()), layer.dy.to(dtype))
    return y.detach(), Gradients(*found)


# What is measured


def layer_of(weights: str, dtype: torch.dtype, seed: int, steps: int, hidden: int = HIDDEN) -> Layer:
    """Random numbers representable in the storage dtype, in float64. ``default``: weights as torch initializes them.
    ``long``: the update gates' biases are log u, u uniform in [1, MEMORY), so that a unit forgets in about u steps."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    h0 = normal(BATCH, hidden).tanh()
    shapes = ((3 * hidden, hidden), (3 * hidden, hidden), (3 * hidden,), (3 * hidden,))
    w_ih, w_hh, b_ih, b_hh = ((2 * uniform(*shape) - 1) / math.sqrt(hidden) for shape in shapes)
    if weights == "long":
        b_ih[hidden : 2 * hidden] = 0
        b_hh[hidden : 2 * hidden] = torch.log(1 + (MEMORY - 1) * uniform(hidden))
    x, dy = normal(steps, BATCH, hidden), normal(steps, BATCH, hidden)
    return Layer(x, h0, w_ih, w_hh, b_ih, b_hh, dy).to(dtype).to(torch.float64)


def cut(layer: Layer, steps: int) -> Layer:
    return layer._replace(x=layer.x[:steps], dy=layer.dy[:steps])


def relative(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return float((found.double() - exact).norm() / exact.norm())


def errors(y: Tensor, found: Gradients, exact_y: Tensor, exact: Gradients) -> Row:
    """For the last step's y, and for the gradients."""
    pairs = ((y[-1], exact_y[-1]), (found.x, exact.x), (found.h0, exact.h0), (found.w_hh, exact.w_hh))
    return dict(zip(ERRORS, (relative(*pair) for pair in pairs), strict=True))


def growth(
    weights: str, seed: int, lengths: tuple[int, ...], hidden: int = HIDDEN, only: str | None = None
) -> Iterator[Row]:
    """A row for each format, or ``only`` one, implementation and length. The loss is sum(y * random): nothing
    underflows."""
    formats = (only,) if only else tuple(FORMATS)
    for storage in dict.fromkeys(map(storage_of, formats)):
        dtype = STORAGE[storage]
        exact = layer_of(weights, dtype, seed, lengths[-1], hidden)
        exact_y, _, exact_gates = forward(NOWHERE, exact)
        truths = [gradients_of(NOWHERE, exact, exact_y, exact_gates, steps)[0] for steps in lengths]
        del exact_gates

        def row(form: str, impl: str, at: int, y: Tensor, found: Gradients) -> Row:
            steps = lengths[at]
            about = {"kind": "growth", "weights": weights, "time": steps, "seed": seed, "format": form, "impl": impl}
            return about | errors(y[:steps], found, exact_y[:steps], truths[at])  # noqa: B023

        layer = exact.to(torch.float32)
        for form in (form for form in formats if storage_of(form) == storage):
            for impl, rounding in FORMATS[form].items():
                y, _, gates = forward(rounding, layer)
                for at, steps in enumerate(lengths):
                    yield row(form, impl, at, y, gradients_of(rounding, layer, y, gates, steps)[0])
        for at, steps in enumerate(lengths if storage in formats else ()):
            yield row(storage, TORCH, at, *torch_cpu(dtype, cut(layer, steps)))


def widths(weights: str, seed: int, lengths: tuple[int, ...]) -> Iterator[Row]:
    """Rows like those of `growth`, of the TF32 recurrence alone, for wider layers."""
    for hidden, most in WIDTHS.items():
        for row in growth(weights, seed, tuple(steps for steps in lengths if steps <= most), hidden, "tf32"):
            yield row | {"kind": "width", "hidden": hidden}


def gradients_of(at: Rounding, layer: Layer, y: Tensor, gates: Gates, steps: int) -> tuple[Gradients, Tensor]:
    """For the first steps alone, whose forward pass is a part of the whole one."""
    return backward(at, cut(layer, steps), y[:steps], Gates(*(gate[:steps] for gate in gates)))


def underflow(weights: str, seed: int, lengths: tuple[int, ...], hidden: int = HIDDEN) -> Iterator[Row]:
    """A row for each 16-bit format, length and scale of the loss, the mean of (y - random)^2 over everything: how much
    of dgh is not a normal number of the format, and the error of dW_hh."""
    for form in ("fp16", "bf16"):
        dtype, at = STORAGE[form], FORMATS[form][OURS]
        exact = layer_of(weights, dtype, seed, lengths[-1], hidden)
        layer = exact.to(torch.float32)
        exact_y, _, exact_gates = forward(NOWHERE, exact)
        y, _, gates = forward(at, layer)
        for steps in lengths:
            dy = 2 * (y - layer.dy) / y[:steps].numel()
            truth, _ = gradients_of(NOWHERE, exact._replace(dy=dy.double()), exact_y, exact_gates, steps)
            for scale in (1.0, SCALE):
                scaled = layer._replace(dy=at.store(scale * dy))
                found, dgh = gradients_of(at, scaled, y, gates, steps)
                about = {"kind": "underflow", "weights": weights, "time": steps, "seed": seed, "format": form}
                error = {"error_dw_hh": relative(found.w_hh.double() / scale, truth.w_hh)}
                yield about | {"impl": OURS, "scale": scale} | error | shares(dgh, dtype)


def shares(dgh: Tensor, dtype: torch.dtype) -> Row:
    """Shares of the values that become zero, subnormal or infinite; and the largest value."""
    stored = dgh.to(dtype).float().abs()
    tiny = torch.finfo(dtype).tiny
    masks = (stored == 0) & (dgh != 0), (stored > 0) & (stored < tiny), ~stored.isfinite()
    return dict(zip(SHARES, (*(float(mask.double().mean()) for mask in masks), float(dgh.abs().max())), strict=True))


# Rows


def name_of(row: Row) -> str:
    size = f"h{row['hidden']}-b{row['batch']}-t{row['time']}"
    scale = f"-x{row['scale']:g}" if row["scale"] else ""
    return f"{row['kind']}-{row['weights']}-{size}-{row['format'].replace(' ', '-')}{scale}-seed{row['seed']}"


def whole(found: Row, where: Row) -> Row:
    """With every key, in order."""
    row = dict.fromkeys(KEYS) | {"hidden": HIDDEN, "batch": BATCH} | found | {key: where[key] for key in KEYS[-3:]}
    numbers = {key: number(row[key]) for key in (*ERRORS, *SHARES)}
    return row | numbers | {"case": name_of(row)}


def run(seeds: int, steps: int, out: Path, commit: str | None) -> int:
    """Measure everything and append the rows, set by set."""
    where: dict[str, Any] = facts(None, commit)
    path = out / file_name("numerics", None, where["date"])
    lengths = tuple(length for length in LENGTHS if length <= steps)
    torch.set_num_threads(1)  # the products are too small to share
    print("Relative errors against float64, emulated on a CPU; one line for each finished set.", flush=True)
    for seed in range(seeds):
        for measure, weights in (
            *((growth, "default"), (growth, "long"), (widths, "default"), (widths, "long")),
            (underflow, "default"),
        ):
            found = [whole(row, where) for row in measure(weights, seed, lengths)]
            for row in found:
                append(path, row)
            print(f"  {measure.__name__}, {weights} weights, seed {seed}: {len(found)} rows", flush=True)
    print(f"Rows: {path}")
    return 0


def read(folder: Path) -> list[Row]:
    """The rows of a folder; of rows about the same thing, the one written last."""
    latest: dict[tuple[Any, ...], Row] = {}
    for path in sorted(folder.glob("numerics-*.jsonl")):
        for written in lines_of(path):
            row = dict.fromkeys(KEYS) | written
            latest[tuple(row[key] for key in ABOUT)] = row
    return list(latest.values())
