"""The time loops of one layer alone, forward and backward, of any kernel family, and the oracle in the same layout."""

from typing import NamedTuple

import torch
from tolerance import assert_close_to_float64

from tritongru import reference
from tritongru.arguments.records import GateGradients, Outputs, Part, Recurrence, Rows, Saved
from tritongru.planning.launches import PersistentLaunch, chunks_of

NAN = float("nan")
RESULTS = ("y", "hn", "gates", "dgx", "da", "dh")
STATES = ("hn", "dh", "d_reset")  # results without time


class Ragged(NamedTuple):
    """Sequences that end early or begin anew, for both directions at once."""

    lengths: torch.Tensor | None = None  # (B,)
    resets: torch.Tensor | None = None  # (T, B) bool
    reset_state: torch.Tensor | None = None  # (D, B or 1, H)

    def of(self, d, dtype):
        """One direction for the oracle."""
        state = None if self.reset_state is None else self.reset_state[d].to(dtype)
        return reference.Ragged(self.lengths, self.resets, state)

    def padding(self, T, B):
        """Rows without a step, (T * B,)."""
        lengths = torch.full((B,), T) if self.lengths is None else self.lengths
        return (torch.arange(T)[:, None] >= lengths).flatten()


def persistent_launch(H, dtype=torch.float32, kernel="forward", **changes) -> PersistentLaunch:
    """A small configuration: 4 warps, K in two parts, 8 hidden units a program."""
    bits = 8 * dtype.itemsize
    options = {"block_b": 16, "block_h": 8, "num_warps": 4, "k_split": 2, "pad": True, "exchange": "counter"} | changes
    step = options["k_split"] * (32 if options["exchange"] == "data" and bits == 16 else 16)
    units = -(-H // step) * step
    slots = 4 if options["exchange"] == "data" else 2
    width = units if kernel == "forward" else 3 * units
    chunks = chunks_of(width // options["k_split"], 64)
    return PersistentLaunch(
        kernel, bits, units, chunks, **{"slots": slots, "shared_bytes": 0, "dot_precision": "ieee"} | options
    )


def layer_tensors(T=4, B=3, H=40, D=1, dtype=torch.float32, bias=True, use_h0=True, use_dy=True, rows=None):
    """Operands of one layer and what arrives at its results, exact in the dtype."""
    torch.manual_seed(0)
    rows = T * B if rows is None else rows

    def some(*shape):
        return (torch.randn(shape) / 2).to(dtype)

    return {
        "gx": some(rows, D, 3 * H),
        "w_hh": (torch.randn(D, 3 * H, H) / H**0.5).to(dtype),
        "b_hh": some(D, 3 * H) if bias else None,
        "h0": some(D, B, H) if use_h0 else None,
        "dy": some(rows, D, H) if use_dy else None,
        "dhn": some(D, B, H),
    }


def nans(*shape, dtype):
    return torch.full(shape, NAN, dtype=dtype)


def recurrence_of(w_hh, b_hh, h0, rows, B, offsets=None, ragged=None):
    """``rows``: how many there are. Of ragged ones the kernels need all three tensors."""
    if ragged is None:
        return Recurrence(w_hh, b_hh, h0, Rows(B, offsets))
    T = rows // B
    lengths = torch.full((B,), T) if ragged.lengths is None else ragged.lengths
    resets = torch.zeros(T, B, dtype=torch.bool) if ragged.resets is None else ragged.resets
    state = w_hh.new_zeros(w_hh.shape[0], 1, w_hh.shape[2]) if ragged.reset_state is None else ragged.reset_state
    return Recurrence(w_hh, b_hh, h0, Rows(B, None, lengths, resets), state)


def loop_forward(family, gx, w_hh, b_hh, h0, y, hn, gates, offsets, launch, *limit, ragged=None, **options):
    """A family's forward of plain tensors."""
    recurrence = recurrence_of(w_hh, b_hh, h0, y.shape[0], hn.shape[1], offsets, ragged)
    family.forward(gx, recurrence, Outputs(y, hn, gates), launch, *limit, **options)


def loop_backward(
    family, dy, dh, w_hh, h0, y, gates, dgx, da, offsets, launch, *part, ragged=None, d_reset=None, **options
):
    """A family's backward of plain tensors."""
    recurrence = recurrence_of(w_hh, None, h0, y.shape[0], dh.shape[1], offsets, ragged)
    found = GateGradients(dgx, da, d_reset)
    family.backward(dy, dh, recurrence, Saved(y, gates), found, launch, Part(*part), **options)


def run_forward(family, tensors, launch, B=3, gates=True, offsets=None, ragged=None):
    """y, hn and the gates; every buffer is NaN before. Rows of padding must stay so, and are then returned as 0."""
    N, D, H = *tensors["gx"].shape[:2], tensors["w_hh"].shape[2]
    dtype = tensors["gx"].dtype
    y, hn = nans(N, D, H, dtype=dtype), nans(D, B, H, dtype=dtype)
    saved = nans(N, D, H, 4, dtype=dtype) if gates else torch.empty(0, dtype=dtype)
    operands = [tensors[name] for name in ("gx", "w_hh", "b_hh", "h0")]
    before = [None if value is None else value.clone() for value in operands]
    loop_forward(family, *operands, y, hn, saved, offsets, launch, ragged=ragged)
    for value, old in zip(operands, before, strict=True):
        assert value is None or torch.equal(value.nan_to_num(9.0), old.nan_to_num(9.0)), "an operand was written to"
    if ragged is not None:
        clear_padding(ragged, B, y, *([saved] if gates else []))
    return y, hn, plain(saved) if gates else saved


def poisoned(value, ragged, B):
    """A copy with NaN in the padding."""
    found = value.clone()
    found[ragged.padding(value.shape[0] // B, B)] = NAN
    return found


def clear_padding(ragged, B, *found):
    """Makes the padding 0, where nothing may have been stored."""
    for value in found:
        padding = ragged.padding(value.shape[0] // B, B)
        assert value[padding].isnan().all(), "the padding was written to"
        value[padding] = 0


def run_backward(family, tensors, y, gates, launch, offsets=None, parts=None, ragged=None, **options):
    """dgx, da and dh, of ragged rows d_reset, too; of a run in parts, put together again."""
    N, D, H = y.shape
    gates = encoded(gates)
    dh = tensors["dhn"].to(torch.float32, copy=True)
    w_hh, h0, dy = tensors["w_hh"], tensors["h0"], tensors["dy"]
    dgx, da = nans(N, D, 3 * H, dtype=y.dtype), nans(N, D, H, dtype=y.dtype)
    B, start, more = dh.shape[1], 0, []
    if ragged is not None:
        more = [torch.zeros(dh.shape)]
        options |= {"ragged": ragged, "d_reset": more[0]}
        y, gates, dy = (None if v is None else poisoned(v, ragged, B) for v in (y, gates, dy))
    if parts is None:
        loop_backward(family, dy, dh, w_hh, h0, y, gates, dgx, da, offsets, launch, **options)
        if ragged is not None:
            clear_padding(ragged, B, dgx, da)
        return dgx, da, dh, *more
    for count in parts:
        rows = [slice((N // B - start - count) * B, (N // B - start) * B), slice(start * B, (start + count) * B)]
        around = [nans(3 * N, D, *shape, dtype=y.dtype) for shape in ((H, 4), (3 * H,), (H,))]
        gates_part, dgx_part, da_part = (v[N : N + count * B] for v in around)
        gates_part.copy_(torch.stack([gates[rows[d], d] for d in range(D)], dim=1))
        loop_backward(family, dy, dh, w_hh, h0, y, gates_part, dgx_part, da_part, None, launch, start, count, **options)
        for v in around:
            assert v[:N].isnan().all(), "rows before the part's"
            assert v[N + count * B :].isnan().all(), "rows behind the part's"
        for d in range(D):
            dgx[rows[d], d], da[rows[d], d] = dgx_part[:, d], da_part[:, d]
        start += count
    if ragged is not None:
        clear_padding(ragged, B, dgx, da)
    return dgx, da, dh, *more


def encoded(gates):
    """Gates as the kernels save them: z - 1 in the place of z where that is the smaller."""
    saved = gates.clone()
    z = gates[..., 1]
    saved[..., 1] = torch.where((z >= 0.5) & (z < 1), z - 1, z)
    return saved


def plain(saved):
    """The gates that the kernels have saved."""
    gates = saved.clone()
    z = saved[..., 1].double()
    gates[..., 1] = torch.where(z < 0, z + 1, z).to(saved.dtype)
    return gates


def expected(tensors, B=3, dtype=torch.float64, ragged=None):
    """The same six of the oracle, computed where the tensors are; of ragged rows d_reset, too, and no gates but 0 in
    the padding."""
    t = {name: None if value is None else value.to(dtype) for name, value in tensors.items()}
    D, H = t["w_hh"].shape[0], t["w_hh"].shape[2]
    found = []
    for d in range(D):
        rows = reference.WHOLE if ragged is None else ragged.of(d, dtype)
        gx, w_hh, reverse = t["gx"][:, d].reshape(-1, B, 3 * H), t["w_hh"][d], d == 1
        h0 = gx.new_zeros(B, H) if t["h0"] is None else t["h0"][d]
        y, hn, gates = reference.forward_loop(gx, h0, w_hh, None if t["b_hh"] is None else t["b_hh"][d], reverse, rows)
        dy = torch.zeros_like(y) if t["dy"] is None else t["dy"][:, d].reshape(y.shape)
        dgx, dgh, dh0, d_reset = reference.backward_loop(dy, t["dhn"][d], h0, w_hh, y, gates, reverse, rows)
        flat = [v.flatten(0, 1) for v in (y, torch.stack(gates, dim=-1), dgx, dgh[..., 2 * H :])]
        if ragged is not None:
            flat[1][ragged.padding(*gx.shape[:2])] = 0
        found.append((flat[0], hn, *flat[1:], dh0, d_reset))
    if ragged is None:
        found = [values[:-1] for values in found]
    return [torch.stack(v, 0 if name in STATES else 1) for name, *v in zip(names_of(ragged), *found, strict=True)]


def names_of(ragged):
    return RESULTS if ragged is None else (*RESULTS, "d_reset")


def check(found, tensors, B, what, ragged=None):
    exact, same = (expected(tensors, B, dtype, ragged) for dtype in (torch.float64, tensors["gx"].dtype))
    same[5:] = [value.float() for value in same[5:]]  # the kernel leaves dh in fp32
    for name, *values in zip(names_of(ragged), found, exact, same, strict=True):
        assert_close_to_float64(*values, f"{what} {name}")
