"""The floor of a persistent launch: its grid, its slots and its exchange, and nothing else.

In every step each program collects the whole tile and publishes blocks of its own size: one of the state or, in a
backward launch, three of gate gradients. There are no products, no gates and no inputs or outputs. A tile is treated as
32-bit words; two 16-bit values make one word.

The collected words need some use: each thread folds the words it holds into one and publishes that. This costs about
half an instruction per word and no communication between threads, and no load can be dropped or overtaken by the
arrival.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tritongru.kernels.launching import compiler_options
from tritongru.kernels.persistent.cooperative import launch_cooperative
from tritongru.kernels.persistent.exchange import (
    arrive,
    clear,
    collect_counted,
    collect_words,
    empty_half,
    first_unit,
    operand_of,
    place,
    wait_for_slot,
)
from tritongru.kernels.persistent.launch import workspace
from tritongru.kernels.persistent.watchdog import LIMIT, spin_budget
from tritongru.planning.launches import PersistentLaunch


@triton.jit
def folded(b_k, BB: tl.constexpr, KS: tl.constexpr, K: tl.constexpr):
    """The words (KS, BB, K) of a chunk as (KS, BB // 16, 8, 4): the xor of the words that each thread loaded."""
    b = tl.reshape(b_k, (KS, BB // 16, 2, 8, K // 8, 2, 4))
    return tl.xor_sum(tl.xor_sum(tl.xor_sum(b, axis=5), axis=4), axis=2)


@triton.jit(do_not_specialize=["T", "tiles", "limit"])
def floor_kernel(
    y,  # (D, tiles, GATES, BB, programs * BH) words, written: the tile after T steps
    slots,  # (D, tiles, SLOTS, GATES * BB * words of a row) zeros: the exchange
    counters,  # (D, tiles, 32) int32 zeros, as in the persistent kernel
    report,  # (1,) int64 readable by the host: where a program gave up waiting
    T,
    tiles,
    limit,
    CHUNKS: tl.constexpr,  # these, and BH, in words
    BB: tl.constexpr,
    BH: tl.constexpr,
    KS: tl.constexpr,
    SLOTS: tl.constexpr,
    DATA: tl.constexpr,
    GATES: tl.constexpr,  # blocks that a program publishes
):
    SLOT: tl.constexpr = BB * first_unit(CHUNKS, KS, len(CHUNKS))
    GATE: tl.constexpr = SLOT // GATES
    HELD: tl.constexpr = KS * (BB // 16) * 32  # folded words, one per thread
    EACH: tl.constexpr = max(1, BB * BH // HELD)  # words that each of them publishes
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
        for g in tl.static_range(GATES):
            p_word = words_of + i_t * (SLOTS * SLOT) + g * GATE + o_word
            tl.store(p_word, (o + i_h + g).to(tl.uint32), mask=m_own)
            if DATA:
                clear(p_word + SLOT, SLOTS - 1, SLOT, m_own)
        arrive(counters + i_t * 32)

    for s in tl.range(T):
        for i_b in tl.range(i_g, tiles, groups):
            i_t = (i_d * tiles + i_b).to(tl.int64)
            counter = counters + i_t * 32
            slot = words_of + i_t * (SLOTS * SLOT)
            p_slot = slot + s % SLOTS * SLOT
            left = wait_for_slot(counter, s, programs, limit, SLOTS, DATA)
            b = tl.zeros((KS, BB // 16, 8, 4), tl.uint32)
            for i in tl.static_range(len(CHUNKS)):
                if DATA:
                    b_words, left = collect_words(p_slot, i, left, BB, KS, CHUNKS, 1)
                    b_k = operand_of(b_words, 0, tl.uint32, BB, KS, CHUNKS[i], 1)
                else:
                    b_k = collect_counted(p_slot, i, BB, KS, CHUNKS, 1)
                b ^= folded(b_k, BB, KS, CHUNKS[i])
            limit = spin_budget(report, counter, limit, left, s, 0, i_b, i_h, i_d)
            if DATA:
                empty_half(slot, counter, s, o_word, m_own, SLOT, SLOTS, GATES, 1)
            p_new = slot + (s + 1) % SLOTS * SLOT
            p_y = y.to(tl.pointer_type(tl.uint32)) + i_t * (GATES * programs * BB * BH) + o_y
            for g in tl.static_range(GATES):
                b_new = ((b[:, :, :, :, None] + (o + i_h + g).to(tl.uint32)) * 5 + s) & 0x7FFFFFFF  # never EMPTY
                tl.store(p_new + g * GATE + o_word, b_new, mask=m_own)
                if s == T - 1:
                    tl.store(p_y + g * (programs * BB * BH), b_new, mask=m_own)
            if not DATA:
                arrive(counter)


def floor(like: Tensor, time: int, tiles: int, directions: int, hidden: int, launch: PersistentLaunch) -> Tensor:
    """Runs ``time`` steps of a launch's exchange on the device of ``like``, with values of its dtype.

    Returns:
        the last published words (directions, tiles, blocks of a program, block_b, words of a batch row).

    Raises:
        RuntimeError: if an earlier launch on this device gave up waiting.
    """
    programs = launch.programs(hidden)
    counters, slots, _ = workspace(like, directions * tiles, launch)
    sizes = blocks(launch)
    tile = (sizes["GATES"], launch.block_b, programs * sizes["BH"])
    y = torch.empty((directions, tiles, *tile), dtype=torch.int32, device=like.device)
    launch_cooperative(
        floor_kernel,
        (programs, launch.groups, directions),
        like,
        *(y, slots.view(torch.int32), counters),
        T=time,
        tiles=tiles,
        limit=LIMIT,
        **sizes,
        num_warps=launch.num_warps,
        **compiler_options("cuda", launch.num_warps),
    )
    return y


def blocks(launch: PersistentLaunch) -> dict[str, Any]:
    """The kernel's constants, converted from units of the state to words."""
    units = 32 // launch.bits
    return {
        "CHUNKS": tuple(width // units for width in launch.chunks),
        "BB": launch.block_b,
        "BH": launch.block_h // units,
        "KS": launch.k_split,
        "SLOTS": launch.slots,
        "DATA": launch.exchange == "data",
        "GATES": 3 if launch.kernel == "backward" else 1,
    }
