"""The floor of a persistent launch: its grid, its slots and its exchange, and nothing else.

Every step each program collects the whole tile and publishes a block as large as its own; there is no product, no gate
and no traffic of inputs or outputs. A tile is seen as 32-bit words: of 16-bit states, two units make one.

The least that may happen to what is collected: each thread folds the words that it holds into one, and publishes it.
That is about half an instruction a word and no talk between threads, and no load is left out or overtaken by the
arrival.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels import together
from tritongru.kernels.exchange import (
    arrive,
    clear,
    collect_counted,
    collect_words,
    first_unit,
    operand_of,
    place,
    wait,
)
from tritongru.kernels.launching import compiler_options, on_device_of
from tritongru.kernels.persistent import workspace
from tritongru.kernels.trouble import LIMIT, raise_trouble, report, trouble_of
from tritongru.launches import PersistentLaunch


@triton.jit
def folded(b_k, BB: tl.constexpr, KS: tl.constexpr, K: tl.constexpr):
    """The words (KS, BB, K) of a chunk as (KS, BB // 16, 8, 4): the exclusive or of what each thread loaded."""
    b = tl.reshape(b_k, (KS, BB // 16, 2, 8, K // 8, 2, 4))
    return tl.xor_sum(tl.xor_sum(tl.xor_sum(b, axis=5), axis=4), axis=2)


@triton.jit(do_not_specialize=["T", "tiles", "limit"])
def floor_kernel(
    y,  # (D, tiles, BB, programs * BH) words, written: the tile after T steps
    slots,  # (D, tiles, SLOTS, BB * words of a row) zeros: the exchange
    counters,  # (D, tiles, 32) int32 zeros, as in the persistent kernel
    trouble,  # (1,) int64 that the host can read: where a program gave up waiting
    T,
    tiles,
    limit,
    CHUNKS: tl.constexpr,  # these, and BH, in words
    BB: tl.constexpr,
    BH: tl.constexpr,
    KS: tl.constexpr,
    SLOTS: tl.constexpr,
    DATA: tl.constexpr,
):
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    HALF: tl.constexpr = SLOTS // 2
    HELD: tl.constexpr = KS * (BB // 16) * 32  # folded words, one for each thread
    EACH: tl.constexpr = max(1, BB * BH // HELD)  # words that such a one publishes
    i_h, i_g, i_d = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs, groups = tl.num_programs(0), tl.num_programs(1)
    words_of = slots.to(tl.pointer_type(tl.uint32))
    o = tl.reshape(tl.arange(0, HELD), (KS, BB // 16, 8, 4))[:, :, :, :, None] * EACH
    o += tl.arange(0, EACH)[None, None, None, None, :]
    o_b, o_h = o // BH, i_h * BH + o % BH
    m_own = o < BB * BH
    o_word = place(o_b, o_h, BB, 1)
    o_y = o_b * (programs * BH) + o_h

    for i_b in tl.range(i_g, tiles, groups):
        i_t = (i_d * tiles + i_b).to(tl.int64)
        p_word = words_of + i_t * (SLOTS * SLOT) + o_word
        tl.store(p_word, (o + i_h).to(tl.uint32), mask=m_own)
        if DATA:
            clear(p_word + SLOT, SLOTS - 1, SLOT, m_own)
        arrive(counters + i_t * 32)

    for s in tl.range(T):
        for i_b in tl.range(i_g, tiles, groups):
            i_t = (i_d * tiles + i_b).to(tl.int64)
            counter = counters + i_t * 32
            slot = words_of + i_t * (SLOTS * SLOT)
            p_slot = slot + s % SLOTS * SLOT
            if DATA:
                ok = True
                if s % HALF == 0:
                    ok = wait(counter, programs * tl.maximum(s // HALF, 1), limit)
            else:
                ok = wait(counter, programs * (s + 1), limit)
            b = tl.zeros((KS, BB // 16, 8, 4), tl.uint32)
            for i in tl.static_range(len(CHUNKS)):
                if DATA:
                    b_words, seen = collect_words(p_slot, i, limit, BB, KS, CHUNKS, 1)
                    ok = ok & seen
                    b_k = operand_of(b_words, 0, tl.uint32, BB, KS, CHUNKS[i], 1)
                else:
                    b_k = collect_counted(p_slot, i, BB, KS, CHUNKS, 1)
                b ^= folded(b_k, BB, KS, CHUNKS[i])
            if not ok:
                tl.store(trouble, report(s, i_b, i_h, i_d))
                limit = 0
            if DATA:  # noqa: SIM102
                if (s % HALF == 0) & (s > 0):
                    clear(slot + (s - HALF) % SLOTS * SLOT + o_word, HALF, SLOT, m_own)
                    arrive(counter)
            b_new = ((b[:, :, :, :, None] + (o + i_h).to(tl.uint32)) * 5 + s) & 0x7FFFFFFF  # never EMPTY
            tl.store(slot + (s + 1) % SLOTS * SLOT + o_word, b_new, mask=m_own)
            if not DATA:
                arrive(counter)
            if s == T - 1:
                p_y = y.to(tl.pointer_type(tl.uint32)) + i_t * (programs * BB * BH) + o_y
                tl.store(p_y, b_new, mask=m_own)


def floor(like: Tensor, time: int, tiles: int, directions: int, hidden: int, launch: PersistentLaunch) -> Tensor:
    """Runs ``time`` steps of the exchange of a launch on the device of a tensor, in states of its dtype.

    Returns:
        the words (directions, tiles, block_b, words of a row) that were published last.

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    programs = launch.programs(hidden)
    trouble = trouble_of(like.device)
    raise_trouble(trouble)
    slots, _, counters = workspace(like, directions * tiles, programs, launch)
    sizes = blocks(launch)
    row = programs * sizes["BH"]
    y = torch.empty((directions, tiles, launch.block_b, row), dtype=torch.int32, device=like.device)
    grid = (programs, launch.groups, directions)
    with on_device_of(like):
        run = functools.partial(together.launch, floor_kernel, grid)
        if like.is_cuda:
            run = functools.partial(floor_kernel[grid], launch_cooperative_grid=True)
        run(
            y,
            slots.view(torch.int32),
            counters,
            trouble,
            T=time,
            tiles=tiles,
            limit=LIMIT,
            **sizes,
            num_warps=launch.num_warps,
            **compiler_options("cuda", launch.num_warps),
        )
    if like.is_cpu:
        raise_trouble(trouble)
    return y


def blocks(launch: PersistentLaunch) -> dict[str, Any]:
    """The kernel's constants: what is counted in units of the state becomes words."""
    units = 32 // launch.bits
    return {
        "CHUNKS": tuple(width // units for width in launch.chunks),
        "BB": launch.block_b,
        "BH": launch.block_h // units,
        "KS": launch.k_split,
        "SLOTS": launch.slots,
        "DATA": launch.exchange == "data",
    }
