"""How the programs that share a batch tile and direction exchange their hidden units.

A slot holds the state of one step: BB rows by all units, in the order of the tensor cores' registers, so that the
sixteen bytes a thread loads are what it feeds to one product. A tile travels from L2 into registers, without shared
memory and without a barrier. There are two forms, selected by ``DATA``:

counter  Two slots. A program stores its units and adds one to the tile's counter (release); it reads the tile once the
         counter shows that all programs have arrived (acquire). A slot is written again one step after all have read
         it: a program that arrives for step s has read step s - 1.
data     The words are their own flags: a ring of slots starts EMPTY, and a program reads a tile again until no word is.
         One trip through L2 instead of two, but more words read. A slot is emptied once all programs have read it, and
         written again only after a round of the counter, one per half ring, has confirmed that it was emptied.

A wait makes a limited number of polls ("looks"). It returns how many are left for the rest of the step, or IN_VAIN if
they ran out. A program whose wait failed sets the counter far ahead, so that its arrivals are not taken for others'.
Counts may wrap around: only their distance from the target matters.
"""

import triton
import triton.language as tl

# All bits set: a NaN of either type. `words` changes the one value that would equal it.
EMPTY = tl.constexpr(0xFFFFFFFF)
IN_VAIN = tl.constexpr(-1)
FAR = tl.constexpr(1 << 30)


@triton.constexpr_function
def first_unit(CHUNKS, KS, i):
    return KS * sum(CHUNKS[:i])


@triton.constexpr_function
def parts(DATA, E):
    """Into how many products a chunk is cut: each half of a word feeds its own product."""
    return 2 if DATA and E == 2 else 1


@triton.jit
def unit_at(k, PART: tl.constexpr, E: tl.constexpr, PARTS: tl.constexpr):
    """The unit at position k of a chunk's product. E: values in a 32-bit word.

    Sixteen bytes hold a unit's neighbours (k half, row half, word); a lane of four owns a run of them."""
    if PARTS == 2:
        k = k // 16 * 32 + k % 2 * 16 + k // 2 % 4 * 4 + k // 8 % 2 * 2 + PART
    else:
        k = k // (8 * E) * (8 * E) + k // E % 4 * (2 * E) + k // (4 * E) % 2 * E + k % E
    return k


@triton.jit
def place(o_b, o_u, BB: tl.constexpr, E: tl.constexpr):
    """Where unit o_u of row o_b of a tile lies in a slot: the inverse of the order of `_pieces`."""
    o = (o_u // (8 * E) * (BB // 16) + o_b // 16) * 8 + o_b % 8
    o = (o * 4 + o_u // (2 * E) % 4) * 2 + o_u // E % 2
    return (o * 2 + o_b // 8 % 2) * E + o_u % E


@triton.jit
def _pieces(BB: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr, E: tl.constexpr, V: tl.constexpr):
    """Offsets of a chunk's sixteen-byte pieces, (pieces, V); the pieces are those of (group of 8 E units, sixteen rows,
    KS, eight rows, lane of four). One-dimensional, or some Tritons would distribute them over warps differently."""
    G: tl.constexpr = BK // (8 * E)
    R: tl.constexpr = BB // 16
    o = tl.arange(0, G * R * KS * 32)[:, None]
    o_s = o // 32 % KS
    o = ((o_s * G + o // (32 * KS * R)) * R + o // (32 * KS) % R) * 32 + o % 32
    return o * V + tl.arange(0, V)[None, :]


@triton.jit
def _operand(b, BB: tl.constexpr, KS: tl.constexpr, K: tl.constexpr, E: tl.constexpr, PARTS: tl.constexpr):
    """Pieces as the left operand (KS, BB, K) of a product, without moving data between threads."""
    if PARTS == 2:
        b = tl.reshape(b, (K // 16, 2, BB // 16, KS, 8, 4, 2, 2))
        b = tl.permute(b, (3, 2, 7, 4, 0, 6, 5, 1))
    else:
        b = tl.reshape(b, (K // (8 * E), BB // 16, KS, 8, 4, 2, 2, E))
        b = tl.permute(b, (2, 1, 6, 3, 0, 5, 4, 7))
    return tl.reshape(b, (KS, BB, K))


@triton.jit
def arrive(counter):
    tl.debug_barrier()  # the release below covers one thread; the others' stores must be done before it
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, target, limit):
    """Waits until ``target`` programs have arrived: looks once, and at most ``limit`` times more. Returns the looks
    left, or IN_VAIN if they did not arrive or one of them gave up. With IN_VAIN as the limit it does not look."""
    ahead = tl.full((), -1, tl.int32)
    looks = limit + 1
    while (ahead < 0) & (looks > 0):
        ahead = tl.atomic_add(counter, 0, sem="acquire") - target
        looks -= 1
    return tl.where((ahead >= 0) & (ahead < FAR // 2), looks, IN_VAIN)


@triton.jit
def give_up(counter, s, programs):
    """Makes every wait for step s or a later one fail."""
    tl.atomic_xchg(counter, programs * s + FAR, sem="relaxed")


@triton.jit
def wait_for_slot(counter, s, programs, limit, SLOTS: tl.constexpr, DATA: tl.constexpr):
    """`wait` until all parts of step s are there or, for words, until they may be polled."""
    left = limit
    if DATA:
        if s % (SLOTS // 2) == 0:
            left = wait(counter, programs * tl.maximum(s // (SLOTS // 2), 1), limit)
    else:
        left = wait(counter, programs * (s + 1), limit)
    return left


@triton.jit
def words(b_y, E: tl.constexpr):
    """A program's own values, in the storage dtype, as 32-bit words, none of them EMPTY. The units of a row are in the
    order of `slices.swapped`, the words in order."""
    if E == 2:
        b = tl.reshape(b_y.to(tl.int16, bitcast=True), (b_y.shape[0] // 4, 2, 2))
        lo, hi = tl.split(tl.permute(b, (0, 2, 1)))
        b = tl.ravel((hi.to(tl.int32) << 16) | (lo.to(tl.int32) & 0xFFFF))
    else:
        b = b_y.to(tl.int32, bitcast=True)
    return tl.minimum(b.to(tl.uint32, bitcast=True), EMPTY - 1)


@triton.jit
def publish(slot, b_y, o_slot, m_slot, o_word, m_word, E: tl.constexpr, DATA: tl.constexpr):
    """Stores the program's own values into a slot, as words or as they are."""
    if DATA:
        tl.store(slot.to(tl.pointer_type(tl.uint32)) + o_word, words(b_y, E), mask=m_word)
    else:
        tl.store(slot + o_slot, b_y, mask=m_slot)


@triton.jit
def collect_counted(slot, i: tl.constexpr, BB: tl.constexpr, KS: tl.constexpr, CHUNKS: tl.constexpr, E: tl.constexpr):
    """Chunk i of the tile, (KS, BB, BK), to be called once `wait` has succeeded."""
    p = slot + first_unit(CHUNKS, KS, i) * BB + _pieces(BB, KS, CHUNKS[i], E, 4 * E)
    return _operand(tl.load(p, cache_modifier=".cg"), BB, KS, CHUNKS[i], E, 1)


@triton.jit
def collect_words(
    slot, i: tl.constexpr, limit, BB: tl.constexpr, KS: tl.constexpr, CHUNKS: tl.constexpr, E: tl.constexpr
):
    """The words of chunk i, and the looks left once none of them is EMPTY, as in `wait`."""
    p = slot.to(tl.pointer_type(tl.uint32)) + first_unit(CHUNKS, KS, i) * BB // E + _pieces(BB, KS, CHUNKS[i], E, 4)
    b = tl.full(p.shape, EMPTY, tl.uint32)
    missing = limit >= IN_VAIN
    looks = limit + 1
    while missing & (looks > 0):
        b = tl.load(p, volatile=True)
        missing = tl.max(tl.ravel(b)) == EMPTY
        looks -= 1
    return b, tl.where(missing, IN_VAIN, looks)


@triton.jit
def operand_of(
    b, PART: tl.constexpr, DT: tl.constexpr, BB: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr, E: tl.constexpr
):
    """Words as the left operand of their chunk's product or, with E == 2, of the product of one half of each word."""
    if E == 2:
        b_half = ((b >> 16 * PART) & 0xFFFF).to(tl.uint16).to(DT, bitcast=True)
        b_k = _operand(b_half, BB, KS, BK // 2, E, 2)
    else:
        b_k = _operand(b.to(DT, bitcast=True), BB, KS, BK, E, 1)
    return b_k


@triton.jit
def clear(p_word, count, STRIDE: tl.constexpr, mask):
    """Empties the program's words in ``count`` consecutive slots."""
    for i in tl.range(0, count):
        tl.store(p_word + i * STRIDE, tl.full(p_word.shape, EMPTY, tl.uint32), mask=mask)


@triton.jit
def empty_half(
    slots, counter, s, o_word, m_word, SLOT: tl.constexpr, SLOTS: tl.constexpr, GATES: tl.constexpr, E: tl.constexpr
):
    """Once per half ring: empties the program's words in the half that all programs have read (they have written the
    slot of step s, which has just been collected), and signals it."""
    HALF: tl.constexpr = SLOTS // 2
    if (s % HALF == 0) & (s > 0):
        p_word = (slots + (s - HALF) % SLOTS * SLOT).to(tl.pointer_type(tl.uint32)) + o_word
        for g in tl.static_range(GATES):
            clear(p_word + g * (SLOT // GATES // E), HALF, SLOT // E, m_word)
        arrive(counter)
