"""Runs a Program (see ptx.py): all programs of a grid at once, warp by warp or a whole CTA in step, with checks.

Happens-before is kept as vector clocks, one component a warp: a barrier joins its warps; a release publishes what its
warp knew at its last barrier (its own lanes' later stores are not ordered by it); an acquire takes that over. Of words
that are their own flags a second set of clocks takes over the writer's with each volatile read (``VD``).
"""

import bisect
import ctypes
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from ptx import Program, f32, f64, half, i8, i32, i64, u8, u16, u32, u64

UINT = {1: u8, 2: u16, 4: u32, 8: u64}
POISON = {1: u8(0xA5), 2: u16(0x7FA5), 4: u32(0x7FA5A5A5), 8: u64(0x7FF5A5A5A5A5A5A5)}
POISON_OF = {u16: POISON[2], u32: POISON[4], u64: POISON[8], np.bool_: np.bool_(False)}


@dataclass
class Options:
    lockstep: bool = True  # the warps of a CTA step by step together; else each on its own, in random order
    seed: int = 0
    shared_races: bool = True
    global_races: bool = True
    uninitialised: bool = True
    store_buffer: bool = True  # stores to the exchange become visible late and out of order, unless released
    noise: bool = True  # errors of the size that the hardware's approximations may have
    truncate: bool = True  # tensor cores cut sums off instead of rounding them
    last: int | None = None  # this CTA runs only when no other can: what it waits for is there
    sample: int | None = 0  # CTA whose memory accesses are counted
    most_reports: int = 30
    absent: tuple = ()  # CTAs that never run, to see what the others do
    checked: int = 8  # about how many CTAs' shared memory is checked, spread over the grid and with the last
    turns: int = 50_000_000


class Deadlock(Exception):
    pass


@dataclass
class Alloc:
    name: str
    base: int
    nbytes: int
    output: bool
    gran: int
    keep: object
    version: int = 0
    buffered: bool = False
    writer: object = None

    def __post_init__(self):
        self.buf = np.frombuffer((ctypes.c_uint8 * self.nbytes).from_address(self.base), dtype=u8)
        self.views = {n: self.buf[: self.nbytes // n * n].view(t) for n, t in UINT.items()}
        self.shift = self.gran.bit_length() - 1

    def shadow(self, ctas):
        n = -(-self.nbytes // self.gran)
        self.W_agent = np.full(n, -1, i32)
        self.W_clock = np.zeros(n, i32)
        self.W_lane = np.zeros(n, u8)
        self.RC = self.RW = None  # only of what is read: last reading warp of each CTA, and its clock
        self.ctas = ctas

    def readers(self):
        if self.RC is None:
            self.RC = np.zeros((len(self.W_agent), self.ctas), i32)
            self.RW = np.zeros((len(self.W_agent), self.ctas), u8)


class Report:
    def __init__(self, most):
        self.found, self.most = {}, most

    def add(self, kind, ins, text):
        key = (kind, ins.line if ins else 0)
        if key in self.found:
            self.found[key][0] += 1
        else:
            self.found[key] = [1, f"{kind}: {text}", ins]

    def __len__(self):
        return len(self.found)

    def kinds(self):
        return Counter(k for k, _ in self.found)

    def lines(self):
        for (kind, line), (n, text, ins) in list(self.found.items())[: self.most]:
            where = f" [ptx {line}: {ins.text}] [{ins.source}]" if ins else ""
            yield f"{n:6d}x {text}{where}"


class Machine:
    def __init__(self, program: Program, grid, args, options: Options, num_warps, outputs=(), buffered=("slots",)):
        self.p, self.o, self.grid, self.nw = program, options, grid, num_warps
        self.random = random.Random(options.seed)
        self.nrandom = np.random.default_rng(options.seed)
        self.report = Report(options.most_reports)
        self.ctas = grid[0] * grid[1] * grid[2]
        self.agents = self.ctas * num_warps
        self.VC = np.zeros((self.agents, self.agents), i32)
        np.fill_diagonal(self.VC, 1)
        self.VD = self.VC.copy()
        self.snapshots = {}
        self.sync = {}  # address -> (strict clocks, clocks with data flags)
        self.stats = Counter()
        self.sampled = defaultdict(Counter)  # memory statistics of the sample CTA
        self.segment_counts = Counter()
        self.sample_counts = Counter()
        self.by_ins = {}  # shared accesses of the sample CTA by instruction: requests, wavefronts, least
        self.pending = defaultdict(list)  # store buffers of CTAs
        self.memo_banks, self.memo_sectors = {}, {}
        self._bind(args, outputs, buffered)
        with np.errstate(all="ignore"):
            self.cta = [Cta(self, i) for i in range(self.ctas)]
        self.groups = [g for c in self.cta for g in c.groups]
        self.ins = {item.n: item for item in program.items if not isinstance(item, str)}

    def _bind(self, args, outputs, buffered):
        self.params = {}
        tensors = []
        used = sorted(index for index, _ in self.p.params.values())
        values = []
        for name, value in args.items():
            if isinstance(value, torch.Tensor) or (
                isinstance(value, int) and not isinstance(value, bool) and name in self.runtime_ints()
            ):
                values.append((name, value))
        # parameters: the tensors and integers that are no constants, in order, then two scratch pointers
        for index, (name, value) in enumerate(values):
            if isinstance(value, torch.Tensor):
                assert value.device.type == "cpu"
                self.params[index] = u64(value.data_ptr())
                if value.numel():
                    span = sum((s - 1) * st for s, st in zip(value.shape, value.stride())) + 1
                    tensors.append((value.data_ptr(), span * value.itemsize, name, value))
            else:
                self.params[index] = u32(value & 0xFFFFFFFF)
        bits = {i: b for i, b in self.p.params.values()}
        for index in used:
            if index not in self.params:
                self.params[index] = u64(0) if bits[index] == 64 else u32(0)
        for index, value in self.params.items():
            if index in bits and value.nbytes * 8 != bits[index]:
                raise RuntimeError(f"parameter {index} has {bits[index]} bits, got {value!r}")
        self.nparams = len(values)
        tensors.sort(key=lambda t: (t[0], -t[1]))
        self.allocs = []
        for i, (base, nbytes, name, value) in enumerate(tensors):
            if i + 1 < len(tensors) and tensors[i + 1][0] < base + nbytes:
                if tensors[i + 1][0] == base and tensors[i + 1][1] == nbytes:
                    continue  # the same tensor twice
                nbytes = tensors[i + 1][0] - base
            gran = min(4, value.itemsize)
            a = Alloc(name, base, nbytes, name in outputs, gran, value)
            a.buffered = name in buffered and self.o.store_buffer
            if a.output and self.o.global_races:
                a.shadow(self.ctas)
            self.allocs.append(a)
        self.bases = [a.base for a in self.allocs]
        self.bases_np = np.array(self.bases, dtype=u64)

    RUNTIME = ("T", "B", "s", "start", "count", "tiles", "limit", "n", "i_d", "N")

    def runtime_ints(self):
        return self.RUNTIME

    # ------------------------------------------------------------------ run
    def run(self):
        with np.errstate(all="ignore"):
            return self._run()

    def _run(self):
        live = [g for g in self.groups if not g.done and g.c.index not in self.o.absent]
        forced, turns, seen = 0, 0, -1
        while live:
            turns += 1
            if turns > self.o.turns:
                raise Deadlock("too many turns")
            ready = [g for g in live if g.ready()]
            if self.o.last is not None and len(ready) > 1:
                ready = [g for g in ready if g.c.index != self.o.last] or ready
            if self.pending and (not ready or self.random.random() < 0.3):
                self.drain_some(all_of_it=not ready)
                if not ready:
                    continue
            if not ready:
                spinning = [g for g in live if g.frags]
                activity = sum(al.version for al in self.allocs)
                forced = forced + 1 if activity == seen else 1
                seen = activity
                if not spinning or forced > 200:
                    self.report.add("deadlock", None, self.who_waits(live))
                    raise Deadlock(self.who_waits(live))
                for g in spinning:
                    g.waiting = None
                continue
            g = ready[self.random.randrange(len(ready))]
            g.turn()
            if g.done:
                live = [x for x in live if not x.done]
        for c in list(self.pending):
            self.drain(c, None)
        return self

    def who_waits(self, live):
        texts = Counter()
        for g in live:
            for seg, _ in g.frags:
                ins = self.p.segments[seg].body[0]
                texts[f"spins at ptx {ins.line} [{ins.source}]"] += 1
            for ident, _, seg, _ in g.parked:
                texts[f"waits at barrier {ident}"] += 1
        return "; ".join(f"{n} groups {t}" for t, n in texts.items())

    # ------------------------------------------------------------------ global memory
    def find(self, a, total, k, ins, what, m_n):
        """[(alloc, positions or None)] of addresses."""
        lo, hi = int(a.min()), int(a.max())
        i = bisect.bisect_right(self.bases, lo) - 1
        if i >= 0 and hi + total <= self.allocs[i].base + self.allocs[i].nbytes:
            return [(self.allocs[i], None)]
        where = np.searchsorted(self.bases_np, a, "right") - 1
        found = []
        for j in np.unique(where):
            pos = np.flatnonzero(where == j)
            if j >= 0:
                al = self.allocs[j]
                good = a[pos] + u64(total) <= u64(al.base + al.nbytes)
                if good.all():
                    found.append((al, pos))
                    continue
                if good.any():
                    found.append((al, pos[good]))
                bad = pos[~good]
                near = f"{int(a[bad[0]]) - al.base} bytes after the start of {al.name} ({al.nbytes} bytes)"
            else:
                bad = pos
                near = f"before all tensors, address {int(a[bad[0]]):#x}"
            self.report.add(
                "global out of bounds", ins, f"{what} of {total} bytes, {len(bad)} lanes, {near}; cta {k.c.index}"
            )
        return found

    def aligned(self, a, total, ins, what):
        if total > 1 and (a & u64(total - 1)).any():
            self.report.add(
                "misaligned global", ins, f"{what} of {total} bytes at {int(a[(a & u64(total - 1)) != 0][0]):#x}"
            )
            return False
        return True

    def drain(self, cta, knows):
        """Stores of a CTA that a release covers (``knows``: clocks of the releasing warp), or all."""
        left = []
        for al, idx, size, vals, agent, clock in self.pending.get(cta, ()):
            ok = np.ones(len(idx), bool) if knows is None else knows[agent] >= clock
            if ok.all():
                al.views[size][idx] = vals
                al.version += 1
            else:
                if ok.any():
                    al.views[size][idx[ok]] = vals[ok]
                    al.version += 1
                left.append((al, idx[~ok], size, vals[~ok], agent[~ok], clock[~ok]))
        if left:
            self.pending[cta] = left
        else:
            self.pending.pop(cta, None)

    def drain_some(self, all_of_it):
        c = self.random.choice(list(self.pending))
        entries = self.pending[c]
        i = self.random.randrange(len(entries))
        al, idx, size, vals, agent, clock = entries[i]
        for j in range(i):  # the same place keeps its order
            if entries[j][0] is al and np.intersect1d(entries[j][1] * entries[j][2] // 4, idx * size // 4).size:
                i = j
                al, idx, size, vals, agent, clock = entries[i]
                break
        ok = (
            np.ones(len(idx), bool)
            if all_of_it
            else self.nrandom.random(len(idx)) < self.random.choice((0.1, 0.5, 1.0))
        )
        al.views[size][idx[ok]] = vals[ok]
        al.version += 1
        if ok.all():
            entries.pop(i)
        else:
            entries[i] = (al, idx[~ok], size, vals[~ok], agent[~ok], clock[~ok])
        if not entries:
            del self.pending[c]

    def overlaps(self, cta, al, off, total):
        for e in self.pending.get(cta, ()):
            if e[0] is al:
                lo, hi = e[1] * e[2] // 16, off // 16
                if np.intersect1d(lo, hi).size:
                    return True
        return False

    # ------------------------------------------------------------------ counting
    def count_global(self, name, what, a, sel_warp, total):
        for w in np.unique(sel_warp):
            x = a[sel_warp == w]
            base = int(x.min()) & ~127
            key = (total, (x - u64(base)).tobytes())
            n = self.memo_sectors.get(key)
            if n is None:
                first, last = x >> u64(5), (x + u64(total - 1)) >> u64(5)
                n = self.memo_sectors[key] = len(np.unique(np.concatenate([first, last])))
            c = self.sampled[(what, name)]
            c["requests"] += 1
            c["sectors"] += n
            c["bytes"] += total * len(x)

    def count_shared(self, what, a, sel_warp, total, lanes, ins=None):
        for w in np.unique(sel_warp):
            pick = sel_warp == w
            key = (what in ("ldsm", "stsm"), total, a[pick].tobytes(), lanes[pick].tobytes())
            n = self.memo_banks.get(key)
            if n is None:
                n = self.memo_banks[key] = wavefronts(a[pick].astype(i64), lanes[pick], total)
            if ins is not None:
                b = self.by_ins.setdefault(ins.n, [0, 0, 0])
                b[0] += 1
                b[1] += n
                b[2] += max(1, -(-total * int(pick.sum()) // 128))
            c = self.sampled[(what, "shared")]
            c["requests"] += 1
            c["wavefronts"] += n
            c["least"] += max(1, -(-total * int(pick.sum()) // 128))
            c["bytes"] += total * int(pick.sum())

    def totals(self, counts=None):
        """Instructions by category, over all warps (or those of the sample CTA)."""
        out = Counter()
        for seg, n in (self.segment_counts if counts is None else counts).items():
            for name, each in self.p.segments[seg].counts.items():
                out[name] += n * each
        return out


def wavefronts(a, lanes, total):
    per = max(1, min(32, 128 // max(total, 4)))  # lanes served at a time
    n = 0
    for phase in range(0, 32, per):
        pick = (lanes >= phase) & (lanes < phase + per)
        if not pick.any():
            continue
        words = np.unique((a[pick] >> 2)[:, None] + np.arange(max(1, total // 4)))
        n += int(np.bincount(words & 31).max())
    return n


class Cta:
    def __init__(self, m: Machine, index):
        self.m, self.index = m, index
        g = m.grid
        self.xyz = index % g[0], index // g[0] % g[1], index // (g[0] * g[1])
        n = m.p.shared_bytes
        self.size = n
        if not hasattr(m, "sgran"):
            ops = [i.op for i in m.p.items if not isinstance(i, str) and ".shared" in i.op and i.op[:2] in ("ld", "st")]
            m.sgran = (
                1
                if any(o.endswith(("8",)) for o in ops)
                else 2
                if any(o.endswith("16") and "matrix" not in o for o in ops)
                else 4
            )
        self.gran = m.sgran
        pad = -(-max(n, 16) // 16) * 16
        self.buf = np.full(pad, 0xA5, u8)
        self.views = {s: self.buf.view(t) for s, t in UINT.items()}
        self.init = np.zeros(pad, u8)
        self.init_views = {s: self.init.view(t) for s, t in UINT.items()}
        self.async_pending = np.zeros(pad // self.gran, bool)
        self.any_async = 0
        k = pad // self.gran
        every = max(1, -(-m.ctas // m.o.checked))
        self.checked = index % every == 0 or index == m.ctas - 1 or index == m.o.sample
        self.races = m.o.shared_races and self.checked
        if self.races:
            self.W_warp = np.full(k, -1, i8)
            self.W_lane = np.zeros(k, u8)
            self.W_clock = np.zeros(k, i32)
            self.R_clock = np.zeros((k, m.nw), i32)
            self.dirty = np.zeros(k, bool)  # written, and not yet fenced for the asynchronous proxy
        self.first = index * m.nw
        self.local = slice(self.first, self.first + m.nw)
        self.VCl = m.VC[self.local, self.local]
        self.arrived = defaultdict(int)
        self.exited = 0
        self.groups = [Group(self, list(range(m.nw)))] if m.o.lockstep else [Group(self, [w]) for w in range(m.nw)]

    def arrive(self, ident, count, lanes):
        self.arrived[ident] += lanes
        self.check(ident, count)

    def check(self, ident, count):
        need = count or 32 * self.m.nw - self.exited
        if self.arrived[ident] < need:
            return
        self.arrived[ident] = 0
        agents = []
        for g in self.groups:
            keep = []
            for item in g.parked:
                if item[0] == ident:
                    g.add(item[2], item[3])
                    agents += [a for a in g.agents_of(item[3])]
                else:
                    keep.append(item)
            g.parked = keep
        agents = np.unique(agents)
        for V in (self.m.VC, self.m.VD):
            V[agents] = V[agents].max(axis=0)
            V[agents, agents] += 1

    def leave(self, lanes):
        self.exited += lanes
        for ident in list(self.arrived):
            if self.arrived[ident]:
                self.check(ident, 0)


class Group:
    """Warps that go together; the ``k`` of the generated code."""

    def __init__(self, c: Cta, warps):
        m = self.m = c.m
        self.c, self.warps, self.G = c, warps, len(warps)
        self.shape = (self.G, 32)
        self.R = [None] * 4096
        self.frags = [[0, None]]
        self.parked = []
        self.done = False
        self.waiting = None
        self.looked = {}  # segments of ordered loads -> (alloc, its version when looked at)
        self.progress = 0
        self.exited_mask = None
        lane = np.broadcast_to(np.arange(32, dtype=u32), self.shape)
        warp = np.broadcast_to(np.array(warps, dtype=u32)[:, None], self.shape)
        self.laneid = lane.copy()
        self.tid_x = (warp * u32(32) + lane).copy()
        self.zero32 = np.zeros(self.shape, u32)
        self.one32 = np.ones(self.shape, u32)
        self.true, self.false = np.ones(self.shape, bool), np.zeros(self.shape, bool)
        for name, values in (("cta", c.xyz), ("ncta", m.grid)):
            for axis, v in zip("xyz", values):
                setattr(self, f"{name}_{axis}", np.full(self.shape, v, u32))
        self.ntid_x = np.full(self.shape, 32 * m.nw, u32)
        self.params = m.params
        self.warp_flat = warp.astype(i64).ravel()
        self.lane_flat = lane.astype(i64).ravel()
        self.agent_flat = self.warp_flat + c.first
        self.agents = np.array(warps) + c.first
        self.ungrouped, self.committed = [], []
        self.sampled = m.o.sample == c.index
        self.ins = None

    # --- scheduling
    def ready(self):
        if not self.frags:
            return False
        return self.waiting is None or self.waiting[0].version != self.waiting[1]

    def agents_of(self, mask):
        return self.agents if mask is None else self.agents[mask.any(axis=1)]

    def add(self, seg, mask):
        for f in self.frags:
            if f[0] == seg:
                both = None if f[1] is None or mask is None else f[1] | mask
                if both is not None:
                    whole = both.all() if self.exited_mask is None else (both | self.exited_mask).all() and False
                    f[1] = None if whole else both
                return
        self.frags.append([seg, mask])

    def turn(self):
        m, p = self.m, self.m.p
        self.waiting = None
        if len(self.frags) > 1 and m.random.random() < 0.1:
            i = m.random.randrange(len(self.frags))
        else:
            i = min(range(len(self.frags)), key=lambda j: self.frags[j][0])
        seg, mask = self.frags.pop(i)
        while True:
            segment = p.segments[seg]
            fn, origin, _ = p.code(segment, mask is not None)
            n = self.G if mask is None else int(mask.any(axis=1).sum())
            m.segment_counts[seg] += n
            if self.sampled:
                m.sample_counts[seg] += n
            try:
                nxt = fn(self, self.R, mask)
            except (TypeError, AttributeError) as error:
                line = error.__traceback__.tb_next.tb_lineno if error.__traceback__.tb_next else 0
                ins = origin.get(line)
                import re

                named = (
                    []
                    if ins is None
                    else re.findall(r"%[a-z]+_?\w*\d+", " ".join(ins.args if ins.op.startswith("st") else ins.args[1:]))
                )
                regs = [a for a in named if not a.startswith(("%tid", "%cta", "%ncta")) and self.R[p.reg(a)] is None]
                if regs:
                    m.report.add("uninitialised register", ins, f"{regs}")
                    raise Deadlock(f"uninitialised register {regs} at ptx {ins.line}: {ins.text}") from error
                raise
            self.progress += 1
            if type(nxt) is int:
                if nxt == -1:
                    lanes = 32 * self.G if mask is None else int(mask.sum())
                    gone = self.true if mask is None else mask
                    self.exited_mask = gone if self.exited_mask is None else self.exited_mask | gone
                    if self.ungrouped or self.committed:
                        m.report.add("cp.async never waited for", None, f"{len(self.committed)} groups at the end")
                        self.committed, self.ungrouped = [], []
                    self.c.leave(lanes)
                    if not self.frags and not self.parked:
                        self.done = True
                    return
                if p.segments[nxt].sync_load:
                    self.add(nxt, mask)
                    look = self.looked.get(nxt)
                    if look is not None and look[0].version == look[1]:
                        self.waiting = look
                    return
                if self.frags:
                    self.add(nxt, mask)
                    i = min(range(len(self.frags)), key=lambda j: self.frags[j][0])
                    seg, mask = self.frags.pop(i)
                    continue
                seg = nxt
            elif nxt[0] == "bar":
                _, ident, count, after = nxt
                if mask is not None and not (mask.all(axis=1) | ~mask.any(axis=1)).all():
                    m.report.add("barrier in divergent warp", segment.body[-1], "")
                self.parked.append((ident, count, after, mask))
                lanes = 32 * self.G if mask is None else int(mask.sum())
                self.c.arrive(ident, count, lanes)
                return
            else:
                _, taken, target, other = nxt
                m.stats["divergent branches"] += 1
                self.add(target, taken)
                self.add(other, (self.true if mask is None else mask) & ~taken)
                i = min(range(len(self.frags)), key=lambda j: self.frags[j][0])
                seg, mask = self.frags.pop(i)

    def branch(self, p, target, other, M):
        if M is None:
            if p.all():
                return target
            if not p.any():
                return other
            return "div", p, target, other
        q = p & M
        if not q.any():
            return other
        if (q == M).all():
            return target
        return "div", q, target, other

    def barrier(self, ident, count, after, M):
        return "bar", ident, count, after

    def warp_sync(self, M):
        rows = self.agents_of(M)
        for V in (self.m.VC, self.m.VD):
            V[rows, rows] += 1

    def fence(self, M):
        for a in self.agents_of(M):
            self.m.drain(self.c.index, self.m.VC[a])

    def fence_proxy(self, M):
        if self.c.races:
            mine = np.isin(self.c.W_warp, [w for i, w in enumerate(self.warps) if M is None or M[i].any()])
            self.c.dirty[mine] = False

    # --- values
    def full(self, v, dtype):
        if isinstance(v, np.ndarray) and v.shape == self.shape:
            return v if v.dtype == dtype else v.astype(dtype)
        return np.full(self.shape, v, dtype)

    def some(self, v, dtype):
        """Half of a packed register that was never written: LLVM packs such halves and takes only the other out."""
        if v is None:
            self.m.stats["undefined half packed"] += 1
            return np.full(self.shape, POISON_OF[dtype], dtype)
        return v

    def sel(self, m, new, old):
        if old is None:
            old = POISON_OF[new.dtype.type]
        return np.where(m, new, old)

    def clock(self):
        return self.zero32

    def _noise(self, y, size):
        """A pseudo-random relative error of up to ``size``, a function of the value."""
        bits = y.view(u32) * u32(2654435761)
        unit = (bits >> u32(8)).astype(f64) / (1 << 23) - 1.0
        return (y.astype(f64) * (1.0 + size * unit)).astype(f32)

    def ex2(self, x, ftz):
        y = np.exp2(np.asarray(x).astype(f64))
        y = np.where(y < 1.1754944e-38, 0.0, y).astype(f32) if ftz else y.astype(f32)
        return self._noise(y, 2.0**-22.5) if self.m.o.noise else y

    def rsqrt(self, x, ftz):
        y = (1.0 / np.sqrt(np.asarray(x).astype(f64))).astype(f32)
        return self._noise(y, 2.0**-22.9) if self.m.o.noise else y

    # --- global memory
    def _active(self, m):
        if m is None:
            return None
        return np.flatnonzero(m)

    def _spread(self, values, sel, dtype):
        if sel is None:
            return [v.reshape(self.shape) for v in values]
        out = []
        for v in values:
            full = np.zeros(self.G * 32, dtype)
            full[sel] = v
            out.append(full.reshape(self.shape))
        return out

    def load_global(self, addr, m, size, vec, how, n):
        mach = self.m
        ins = mach.ins[n]
        sel = self._active(m)
        a = addr.ravel() if sel is None else addr.ravel()[sel]
        dtype = UINT[size]
        if a.size == 0:
            return [np.zeros(self.shape, dtype)] * vec
        total = size * vec
        mach.aligned(a, total, ins, "load")
        values = None
        lanes = np.arange(a.size) if sel is None else sel
        for al, pos in mach.find(a, total, self, ins, "load", n):
            x, who = (a, lanes) if pos is None else (a[pos], lanes[pos])
            off = (x - u64(al.base)).astype(i64)
            if al.buffered and mach.pending.get(self.c.index) and mach.overlaps(self.c.index, al, off, total):
                mach.drain(self.c.index, None)
            idx = off // size
            got = al.views[size][idx[:, None] + np.arange(vec)] if vec > 1 else al.views[size][idx][:, None]
            if values is None and pos is None:
                values = got
            else:
                if values is None:
                    values = np.full((a.size, vec), POISON[size], dtype)
                values[pos] = got
            if al.output and mach.o.global_races:
                seen = None
                if how == "volatile" and al.name == "slots" and size == 4:  # a word that is EMPTY is looked at again
                    seen = np.repeat(got != u32(0xFFFFFFFF), 4 // al.gran, axis=1)
                self._check_read(al, off, total, who, how, ins, seen)
            if how in ("volatile", "acquire", "relaxed"):
                self.looked[self._segment_of(n)] = (al, al.version)
                if how == "acquire":
                    self._acquire(x, who)
            if self.sampled:
                mach.count_global(al.name, "ld." + how, x, self.warp_flat[who], total)
        if values is None:
            values = np.full((a.size, vec), POISON[size], dtype)
        return self._spread([values[:, j] for j in range(vec)], sel, dtype)

    def _segment_of(self, n):
        table = self.m.__dict__.setdefault("segment_of", {})
        if not table:
            for s in self.m.p.segments:
                for item in s.body:
                    table[item.n] = s.n
        return table[n]

    def _granules(self, al, off, total):
        if total <= al.gran:
            return (off >> al.shift)[:, None]
        return (off >> al.shift)[:, None] + np.arange(total // al.gran)

    def _check_read(self, al, off, total, who, how, ins, seen=None):
        m = self.m
        g = self._granules(al, off, total)
        wa = al.W_agent[g]
        me = self.agent_flat[who][:, None]
        if seen is not None:
            wa = np.where(seen, wa, -1)
        if (wa >= 0).any():
            wc = al.W_clock[g]
            old = np.where(wa < 0, 0, wa)
            strict = (wa >= 0) & (m.VC[me, old] < wc)
            if how == "volatile":
                if al.name == "slots":
                    self._take_over(wa, wc, me)
            elif strict.any():
                data = strict & (m.VD[me, old] < wc)
                if how in ("acquire", "relaxed"):
                    m.stats["ordered load of another's plain write"] += 1
                elif data.any():
                    i = np.argwhere(data)[0]
                    m.report.add(
                        "global race: read",
                        ins,
                        f"{al.name} byte {int(off[i[0]])}: warp {int(me[i[0], 0]) % m.nw} of cta {self.c.index} reads what warp {int(wa[tuple(i)]) % m.nw} of cta {int(wa[tuple(i)]) // m.nw} wrote, with no order between",
                    )
                else:
                    m.stats["read ordered by data flags only"] += 1
            intra = (wa == me) & (al.W_lane[g] != self.lane_flat[who][:, None]) & (wc == m.VC[me, me])
            if intra.any() and how != "volatile":
                m.report.add(
                    "global race within a warp",
                    ins,
                    f"{al.name}: a lane reads what another lane of the same warp wrote since the last barrier",
                )
        al.readers()
        if seen is None:
            al.RC[g, self.c.index] = m.VC[me, me]
            al.RW[g, self.c.index] = self.warp_flat[who][:, None]
        elif seen.any():
            al.RC[g[seen], self.c.index] = np.broadcast_to(m.VC[me, me], g.shape)[seen]
            al.RW[g[seen], self.c.index] = np.broadcast_to(self.warp_flat[who][:, None], g.shape)[seen]

    def _take_over(self, wa, wc, me):
        m = self.m
        keep = wa >= 0
        pairs = np.unique(np.stack([np.broadcast_to(me, wa.shape)[keep], wa[keep], wc[keep]], 1), axis=0)
        for a, w, c in pairs.tolist():
            if m.VD[a, w] < c:
                row = m.snapshots.get((w, c))
                if row is not None:
                    np.maximum(m.VD[a], row, out=m.VD[a])
                if m.VD[a, w] < c:
                    m.VD[a, w] = c

    def _check_write(self, al, off, total, who, ins, values=None):
        m = self.m
        g = self._granules(al, off, total)
        me = self.agent_flat[who][:, None]
        wa, wc = al.W_agent[g], al.W_clock[g]
        if (wa >= 0).any():
            old = np.where(wa < 0, 0, wa)
            strict = (wa >= 0) & (m.VC[me, old] < wc)
            if strict.any():
                data = strict & (m.VD[me, old] < wc)
                if data.any():
                    i = np.argwhere(data)[0]
                    m.report.add(
                        "global race: write after write",
                        ins,
                        f"{al.name} byte {int(off[i[0]])}: cta {self.c.index} over cta {int(wa[tuple(i)]) // m.nw}",
                    )
                else:
                    m.stats["write ordered by data flags only"] += 1
            intra = (wa == me) & (al.W_lane[g] != self.lane_flat[who][:, None]) & (wc == m.VC[me, me])
            if intra.any():
                m.report.add(
                    "global race within a warp",
                    ins,
                    f"{al.name}: two lanes of a warp write the same place since the last barrier",
                )
        rc = None if al.RC is None else al.RC[g]  # (n, k, ctas)
        if rc is not None and rc.any():
            agents = al.RW[g].astype(i64) + np.arange(m.ctas) * m.nw
            late = rc > m.VC[me[:, :, None], agents]
            if late.any():
                data = late & (rc > m.VD[me[:, :, None], agents])
                if data.any():
                    i = np.argwhere(data)[0]
                    m.report.add(
                        "global race: write after read",
                        ins,
                        f"{al.name} byte {int(off[i[0]])}: cta {self.c.index} overwrites what cta {int(i[2])} may still read",
                    )
                else:
                    m.stats["overwrite ordered by data flags only"] += 1
        al.W_agent[g] = me
        al.W_clock[g] = m.VC[me, me]
        al.W_lane[g] = self.lane_flat[who][:, None]
        if al.name == "slots":
            for a in np.unique(me):
                m.snapshots[int(a), int(m.VC[a, a])] = m.VD[a].copy()

    def store_global(self, addr, m, size, vec, values, how, n):
        mach = self.m
        ins = mach.ins[n]
        sel = self._active(m)
        a = addr.ravel() if sel is None else addr.ravel()[sel]
        if a.size == 0:
            return
        total = size * vec
        mach.aligned(a, total, ins, "store")
        self.looked.clear()
        v = np.stack([x.ravel() if sel is None else x.ravel()[sel] for x in values], 1)
        lanes = np.arange(a.size) if sel is None else sel
        for al, pos in mach.find(a, total, self, ins, "store", n):
            x, who, y = (a, lanes, v) if pos is None else (a[pos], lanes[pos], v[pos])
            off = (x - u64(al.base)).astype(i64)
            if not al.output:
                mach.report.add("write into an input", ins, al.name)
            elif mach.o.global_races:
                self._check_write(al, off, total, who, ins)
            if self.c.checked and len(np.unique(off)) < len(off):
                order = np.argsort(off, kind="stable")
                same = off[order][1:] == off[order][:-1]
                if (y[order][1:][same] != y[order][:-1][same]).any():
                    mach.report.add("lanes store different values in one place", ins, al.name)
                else:
                    mach.stats["redundant stores"] += int(same.sum())
            idx = (off // size)[:, None] + np.arange(vec)
            if al.buffered:
                agents = np.repeat(self.agent_flat[who], vec)
                mach.pending[self.c.index].append((al, idx.ravel(), size, y.ravel(), agents, mach.VC[agents, agents]))
            else:
                al.views[size][idx] = y
                al.version += 1
            if self.sampled:
                mach.count_global(al.name, "st", x, self.warp_flat[who], total)

    def _acquire(self, x, who):
        m = self.m
        for address, lane in zip(x.tolist(), who.tolist()):
            if address in m.sync:
                a = self.agent_flat[lane]
                for V, L in zip((m.VC, m.VD), m.sync[address]):
                    own = V[a, a]
                    np.maximum(V[a], L, out=V[a])
                    V[a, a] = max(own, V[a, a])

    def atomic(self, addr, m, size, what, values, how, scope, n):
        mach = self.m
        ins = mach.ins[n]
        sel = self._active(m)
        sel = np.arange(self.G * 32) if sel is None else sel
        a = addr.ravel()[sel]
        dtype = UINT[size]
        out = np.zeros(self.G * 32, dtype)
        if a.size:
            mach.aligned(a, size, ins, "atomic")
        for al, pos in mach.find(a, size, self, ins, "atomic", n) if a.size else ():
            x, who = (a, sel) if pos is None else (a[pos], sel[pos])
            if not al.output:
                mach.report.add("write into an input", ins, al.name)
            for address, lane in zip(x.tolist(), who.tolist()):
                i = (address - al.base) // size
                agent = self.agent_flat[lane]
                if how in ("release", "acq_rel") and scope != "cta":
                    rows = []
                    for V in (mach.VC, mach.VD):
                        row = V[agent].copy()
                        row[agent] -= 1  # lanes of the warp are not ordered with the one that releases
                        rows.append(row)
                    mach.drain(self.c.index, rows[0])
                    before = mach.sync.get(address)
                    mach.sync[address] = rows if before is None else [np.maximum(r, b) for r, b in zip(rows, before)]
                view, v = al.views[size], values[0].ravel()[lane]
                old = view[i]
                out[lane] = old
                if what == "add":
                    view[i] = old + v
                elif what == "exch":
                    view[i] = v
                elif what == "cas":
                    if old == v:
                        view[i] = values[1].ravel()[lane]
                elif what in ("max", "min"):
                    view[i] = getattr(np, what + "imum")(old, v)
                elif what == "or":
                    view[i] = old | v
                else:
                    raise NotImplementedError(what)
                al.version += 1
                if how in ("acquire", "acq_rel"):
                    self._acquire(np.array([address]), np.array([lane]))
            self.looked.clear()
            if self.sampled:
                mach.count_global(al.name, "atom", x, self.warp_flat[who], size)
        return out.reshape(self.shape)

    # --- shared memory
    def _shared(self, a, total, ins, what):
        """Checked byte offsets (those out of bounds are set to 0)."""
        bad = a.astype(i64) + total > self.c.size
        if bad.any():
            self.m.report.add(
                "shared out of bounds", ins, f"{what} of {total} bytes at {int(a[bad][0])} of {self.c.size}"
            )
            a = np.where(bad, a.dtype.type(0), a)
        if total > 1 and (a & a.dtype.type(total - 1)).any():
            self.m.report.add(
                "misaligned shared", ins, f"{what} of {total} bytes at {int(a[(a & a.dtype.type(total - 1)) != 0][0])}"
            )
        return a.astype(i64)

    def _sgran(self, a, total):
        g = self.c.gran
        if total <= g:
            return (a // g)[:, None]
        return (a // g)[:, None] + np.arange(total // g)

    def _shared_read(self, a, total, who, ins, lanes=None):
        c, m = self.c, self.m
        if m.o.uninitialised and c.checked:
            s = total if total <= 8 else 8
            ok = c.init_views[s][a // s] == UINT[s](0x0101010101010101 & ((1 << 8 * s) - 1))
            if total == 16:
                ok &= c.init_views[8][a // 8 + 1] == u64(0x0101010101010101)
            if not ok.all():
                m.report.add(
                    "shared memory never written",
                    ins,
                    f"read of {total} bytes at {int(a[~ok][0])}, {int((~ok).sum())} lanes, cta {c.index}",
                )
        if not c.races:
            return
        g = self._sgran(a, total)
        if c.any_async and c.async_pending[g].any():
            m.report.add(
                "read of a cp.async that nobody waited for",
                ins,
                f"byte {int(a[np.argwhere(c.async_pending[g])[0][0]])}",
            )
        me = self.warp_flat[who][:, None]
        ww = c.W_warp[g].astype(i64)
        wc = c.W_clock[g]
        other = np.where(ww < 0, 0, ww)
        mine = c.VCl[me, me]
        bad = (ww >= 0) & (c.VCl[me, other] < wc)
        if bad.any():
            i = np.argwhere(bad)[0]
            m.report.add(
                "shared race: read",
                ins,
                f"byte {int(a[i[0]])}: warp {int(me[i[0], 0])} reads what warp {int(ww[tuple(i)])} wrote, no barrier between (cta {c.index})",
            )
        lane = self.lane_flat[who][:, None] if lanes is None else lanes
        intra = (ww == me) & (wc == mine) & (c.W_lane[g] != lane)
        if intra.any():
            m.stats["shared: lanes of a warp exchange without a barrier"] += 1
            m.intra = getattr(m, "intra", Counter())
            m.intra[ins.line] += 1
        c.R_clock[g, me] = mine

    def _shared_write(self, a, total, who, ins, lanes=None, data=None):
        c, m = self.c, self.m
        if not c.checked:
            return
        if total <= 8:
            c.init_views[total][a // total] = UINT[total](0x0101010101010101 & ((1 << 8 * total) - 1))
        else:
            c.init_views[8][a // 8] = u64(0x0101010101010101)
            c.init_views[8][a // 8 + 1] = u64(0x0101010101010101)
        if not c.races:
            return
        g = self._sgran(a, total)
        me = self.warp_flat[who][:, None]
        ww, wc = c.W_warp[g].astype(i64), c.W_clock[g]
        if c.any_async and c.async_pending[g].any():
            m.report.add(
                "write over a cp.async that nobody waited for",
                ins,
                f"byte {int(a[np.argwhere(c.async_pending[g])[0][0]])}",
            )
        other = np.where(ww < 0, 0, ww)
        bad = (ww >= 0) & (c.VCl[me, other] < wc)
        if bad.any() and data is not None:  # several warps hold the same values of a replicated layout
            same = (
                np.ascontiguousarray(data).view(u8).reshape(len(a), total) == c.buf[a[:, None] + np.arange(total)]
            ).all(axis=1)
            m.stats["redundant shared stores of several warps"] += int((bad.any(axis=1) & same).sum())
            bad &= ~same[:, None]
        if bad.any():
            i = np.argwhere(bad)[0]
            m.report.add(
                "shared race: write after write",
                ins,
                f"byte {int(a[i[0]])}: warp {int(me[i[0], 0])} over warp {int(ww[tuple(i)])} (cta {c.index})",
            )
        late = c.R_clock[g] > c.VCl[me]
        if late.any():
            i = np.argwhere(late)[0]
            m.report.add(
                "shared race: write after read",
                ins,
                f"byte {int(a[i[0]])}: warp {int(me[i[0], 0])} overwrites what warp {int(i[2])} reads, no barrier between (cta {c.index})",
            )
        c.W_warp[g] = me
        c.W_clock[g] = c.VCl[me, me]
        c.dirty[g] = True
        c.W_lane[g] = self.lane_flat[who][:, None] if lanes is None else lanes

    def load_shared(self, addr, m, size, vec, n):
        ins = self.m.ins[n]
        sel = self._active(m)
        a = addr.ravel() if sel is None else addr.ravel()[sel]
        dtype = UINT[size]
        if a.size == 0:
            return [np.zeros(self.shape, dtype)] * vec
        total = size * vec
        a = self._shared(a, total, ins, "load")
        who = np.arange(a.size) if sel is None else sel
        self._shared_read(a, total, who, ins)
        idx = a // size
        got = self.c.views[size][idx[:, None] + np.arange(vec)]
        if self.sampled:
            self.m.count_shared("lds", a, self.warp_flat[who], total, self.lane_flat[who], ins)
        return self._spread([got[:, j] for j in range(vec)], sel, dtype)

    def store_shared(self, addr, m, size, vec, values, n):
        ins = self.m.ins[n]
        sel = self._active(m)
        a = addr.ravel() if sel is None else addr.ravel()[sel]
        if a.size == 0:
            return
        total = size * vec
        a = self._shared(a, total, ins, "store")
        who = np.arange(a.size) if sel is None else sel
        v = np.stack([x.ravel() if sel is None else x.ravel()[sel] for x in values], 1)
        if self.c.checked and len(np.unique(a)) < len(a):
            order = np.argsort(a, kind="stable")
            same = a[order][1:] == a[order][:-1]
            if (v[order][1:][same] != v[order][:-1][same]).any():
                self.m.report.add("lanes store different values in one place", ins, "shared")
            else:
                self.m.stats["redundant shared stores"] += int(same.sum())
        self._shared_write(a, total, who, ins, data=v)
        self.c.views[size][(a // size)[:, None] + np.arange(vec)] = v
        if self.sampled:
            self.m.count_shared("sts", a, self.warp_flat[who], total, self.lane_flat[who], ins)

    def _whole(self, m, ins_n, what):
        if m is not None and not (m.all(axis=1) | ~m.any(axis=1)).all():
            self.m.report.add("warp-wide instruction in a divergent warp", self.m.ins.get(ins_n), what)

    def ldmatrix(self, addr, m, count, trans, n):
        ins = self.m.ins[n]
        self._whole(m, n, "ldmatrix")
        rows = 8 * count
        live = np.arange(self.G) if m is None else np.flatnonzero(m.any(axis=1))
        out = np.zeros((count, self.G, 32), u32)
        if live.size:
            a = addr[live, :rows].ravel()
            a = self._shared(a, 16, ins, "ldmatrix")
            who = (live[:, None] * 32 + np.arange(rows)).ravel()
            self._shared_read(a, 16, who, ins, lanes=255)
            x = self.c.views[2][(a // 2)[:, None] + np.arange(8)].reshape(live.size, count, 8, 8)
            if trans:
                x = x.swapaxes(2, 3)
            x = np.ascontiguousarray(x).view(u32).reshape(live.size, count, 32)
            out[:, live] = x.swapaxes(0, 1)
            if self.sampled:
                self.m.count_shared("ldsm", a, self.warp_flat[who], 16, self.lane_flat[who], ins)
        return out

    def stmatrix(self, addr, m, values, trans, n):
        ins = self.m.ins[n]
        self._whole(m, n, "stmatrix")
        count = len(values)
        rows = 8 * count
        live = np.arange(self.G) if m is None else np.flatnonzero(m.any(axis=1))
        if not live.size:
            return
        a = self._shared(addr[live, :rows].ravel(), 16, ins, "stmatrix")
        who = (live[:, None] * 32 + np.arange(rows)).ravel()
        x = np.stack([self.full(v, u32)[live] for v in values], 1)  # (G, count, 32)
        x = np.ascontiguousarray(x).view(u16).reshape(live.size, count, 8, 8)
        if trans:
            x = x.swapaxes(2, 3)
        x = x.reshape(live.size * rows, 8)
        if self.c.checked and len(np.unique(a)) < len(a):
            order = np.argsort(a, kind="stable")
            same = a[order][1:] == a[order][:-1]
            if (x[order][1:][same] != x[order][:-1][same]).any():
                self.m.report.add("lanes store different values in one place", ins, "shared (stmatrix)")
            else:
                self.m.stats["redundant shared stores"] += int(same.sum())
        self._shared_write(a, 16, who, ins, lanes=255, data=x)
        self.c.views[2][(a // 2)[:, None] + np.arange(8)] = x
        if self.sampled:
            self.m.count_shared("stsm", a, self.warp_flat[who], 16, self.lane_flat[who], ins)

    # --- asynchronous copies
    def cp_async(self, dst, src, m, nbytes, size, n):
        mach, ins = self.m, self.m.ins[n]
        sel = self._active(m)
        who = np.arange(self.G * 32) if sel is None else sel
        if not who.size:
            return
        d = self._shared(self.full(dst, u32).ravel()[who], nbytes, ins, "cp.async")
        s = src.ravel()[who]
        want = np.full(who.size, nbytes, i64) if size is None else self.full(size, u32).ravel()[who].astype(i64)
        mach.aligned(s[want > 0], nbytes, ins, "cp.async") if (want > 0).any() else None
        data = np.zeros((who.size, nbytes), u8)
        for w in np.unique(want):
            if w == 0:
                continue
            pick = np.flatnonzero(want == w)
            for al, pos in mach.find(s[pick], int(w), self, ins, "cp.async", n):
                rows = pick if pos is None else pick[pos]
                off = (s[rows] - u64(al.base)).astype(i64)
                data[rows, : int(w)] = al.buf[off[:, None] + np.arange(int(w))]
                if al.output and mach.o.global_races:
                    self._check_read(al, off, int(w), who[rows], "ca", ins)
                if self.sampled:
                    mach.count_global(al.name, "cp.async", s[rows], self.warp_flat[who[rows]], int(w))
        if self.c.races:
            keep = self.c.init.copy() if False else None
            g = self._sgran(d, nbytes)
            was = self.c.init[(d[:, None] + np.arange(nbytes))].copy()
            self._shared_write(d, nbytes, who, ins)
            self.c.init[(d[:, None] + np.arange(nbytes))] = was
            self.c.async_pending[g] = True
            self.c.any_async += 1
            del keep
        if self.sampled:
            mach.count_shared("cp.async", d, self.warp_flat[who], nbytes, self.lane_flat[who], ins)
        self.ungrouped.append((d, data, nbytes, who))

    def cp_commit(self, M):
        self.committed.append(self.ungrouped)
        self.ungrouped = []

    def cp_wait(self, left, M):
        while len(self.committed) > left:
            for d, data, nbytes, who in self.committed.pop(0):
                bytes_ = d[:, None] + np.arange(nbytes)
                self.c.buf[bytes_] = data
                self.c.init[bytes_] = 1
                if self.c.races:
                    g = self._sgran(d, nbytes)
                    self.c.async_pending[g] = False
                    self.c.any_async -= 1
                    me = self.warp_flat[who][:, None]
                    self.c.W_warp[g] = me
                    self.c.W_clock[g] = self.c.VCl[me, me]
                    self.c.W_lane[g] = self.lane_flat[who][:, None]

    # --- tensor cores
    def _cut(self, d64):
        if not self.m.o.truncate:
            return d64.astype(f32)
        y = d64.astype(f32)
        over = np.abs(y.astype(f64)) > np.abs(d64)
        return np.where(over & np.isfinite(y), np.nextafter(y, f32(0)), y)

    def _operand(self, regs, ty, perm, shape):
        x = np.stack([self.full(r, u32) for r in regs], 2)  # (G, 32, n)
        if ty == "tf32":
            x = (x & u32(0xFFFFE000)).view(f32)
        else:
            x = half(ty, np.ascontiguousarray(x).view(u16), 0)
        return x.reshape(self.G, -1)[:, perm].reshape(self.G, *shape)

    def mma(self, shape, ty, a, b, c, m):
        self._whole(m, None, "mma")
        pa, pb, M, N, K = MMA[shape, "tf32" if ty == "tf32" else "16"]
        A = self._operand(a, ty, pa, (M, K)).astype(f64)
        B = self._operand(b, ty, pb, (K, N)).astype(f64)
        C = np.stack(c, 2).reshape(self.G, -1)[:, PC].reshape(self.G, 16, 8)
        D = self._cut(A @ B + C)
        out = np.empty((self.G, 128), f32)
        out[:, PC] = D.reshape(self.G, 128)
        out = out.view(u32).reshape(self.G, 32, 4)
        return [np.ascontiguousarray(out[:, :, i]) for i in range(4)]

    def wgmma(self, shape, ty, d, a, desc, scale, rest, m, n):
        self._whole(m, n, "wgmma")
        M, N, K = (int(x) for x in shape.replace("m", " ").replace("n", " ").replace("k", " ").split())
        ins = self.m.ins[n]
        esize = 4 if ty == "tf32" else 2
        desc = self.full(desc, u64)
        assert (desc == desc[:, :1]).all()
        flags = rest[2:] if esize == 2 else []  # scale-a, scale-b, then, of 16 bit alone, what is transposed
        tb = flags[-1] if flags else 0
        ta = flags[-2] if len(flags) > 1 else 0
        known = {int(x): None for x in desc[:, 0]}  # each group of four warps has its own
        for x in known:
            known[x] = self._from_descriptor(x, N, K, esize, ty, tb, None, ins, rows=N)
        B = np.stack([known[int(x)] for x in desc[:, 0]])
        if isinstance(a, list):
            pa = MMA["m16n8k16" if esize == 2 else "m16n8k8", "16" if esize == 2 else "tf32"][0]
            A = self._operand(a, ty, pa, (16, K))
        else:
            da = self.full(a, u64)
            known = {int(x): None for x in da[:, 0]}
            for x in known:
                known[x] = self._from_descriptor(x, 64, K, esize, ty, ta, None, ins, rows=64)  # (64, K)
            A = np.stack([known[int(x)][16 * (w % 4) : 16 * (w % 4) + 16] for w, x in zip(self.warps, da[:, 0])])
        D = A.astype(f64) @ np.swapaxes(B, 1, 2).astype(f64)  # (G, 16, N)
        old = np.stack([self.full(POISON[4] if r is None else r, u32) for r in d], 2).view(f32)  # (G, 32, N/2)
        use = np.asarray(scale)
        if use.ndim == 0:
            use = np.full(self.shape, bool(use))
        C = np.empty((self.G, 16, N), f32)
        C[:, WROW(N), WCOL(N)] = old
        C = np.where(use[:, :1, None], C, f32(0))
        R = self._cut(D + C)
        out = R[:, WROW(N), WCOL(N)]
        out = np.ascontiguousarray(out).view(u32)
        return [np.ascontiguousarray(out[:, :, i]) for i in range(N // 2)]

    def _from_descriptor(self, desc, N, K, esize, ty, transposed, warp, ins, rows):
        """(rows, K) of an operand in shared memory. K-major unless ``transposed``."""
        start, lbo, sbo = (desc & 0x3FFF) << 4, ((desc >> 16) & 0x3FFF) << 4, ((desc >> 32) & 0x3FFF) << 4
        mode = desc >> 62 & 3
        swizzle = {0: 16, 1: 128, 2: 64, 3: 32}[mode]
        r, kk = np.meshgrid(np.arange(rows), np.arange(K), indexing="ij")
        if not transposed:  # rows of `swizzle` bytes along k; groups of eight rows are sbo apart
            byte = kk * esize
            if mode == 0:
                off = (r // 8) * sbo + (byte // 16) * lbo + (r % 8) * 16 + byte % 16
            else:
                off = (r // 8) * sbo + (r % 8) * swizzle + byte
        else:  # the other dimension is contiguous
            byte = r * esize
            if mode == 0:
                off = (byte // 16) * lbo + (kk // 8) * sbo + (kk % 8) * 16 + byte % 16
            else:
                off = (byte // swizzle) * lbo + (kk // 8) * sbo + (kk % 8) * swizzle + byte % swizzle
        address = start + off
        if mode:
            bits = {128: 7, 64: 3, 32: 1}[swizzle]
            address = address ^ (((address >> 7) & bits) << 4)
        a = address.ravel()
        a = self._shared(a.astype(u32), esize, ins, "wgmma")
        ok = self.c.init_views[esize][a // esize] != 0
        if self.m.o.uninitialised and self.c.checked and not ok.all():
            self.m.report.add("shared memory never written", ins, "wgmma operand")
        if self.c.races:
            c = self.c
            g = a // c.gran
            ww = c.W_warp[g].astype(i64)
            if c.dirty[g].any():
                self.m.report.add(
                    "wgmma reads what no fence.proxy.async made visible",
                    ins,
                    f"{int(c.dirty[g].sum())} of {len(g)} values",
                )
            for w in self.warps:
                bad = (ww >= 0) & (c.VCl[w, np.where(ww < 0, 0, ww)] < c.W_clock[g])
                if bad.any():
                    self.m.report.add(
                        "shared race: read", ins, f"wgmma of warp {w} reads what warp {int(ww[bad][0])} wrote"
                    )
                c.R_clock[g, w] = c.VCl[w, w]
        x = self.c.views[esize][a // esize].reshape(rows, K)
        if ty == "tf32":
            return (x & u32(0xFFFFE000)).view(f32)
        return half(ty, x, 0)

    def wgmma_fence(self):
        pass

    def wgmma_commit(self):
        pass

    def wgmma_wait(self, n):
        pass

    # --- within a warp
    def shfl(self, mode, a, b, c, members, m):
        a, b = self.full(a, u32), self.full(b, u32).astype(i64)
        c = self.full(c, u32).astype(i64)
        lane = self.lane_flat.reshape(self.shape)
        seg = (c >> 8) & 31
        clamp = c & 31
        top = (lane & seg) | (clamp & ~seg)
        low = lane & seg
        if mode == "bfly":
            j = lane ^ b
            ok = j <= top
        elif mode == "idx":
            j = low | (b & ~seg)
            ok = j <= top
        elif mode == "up":
            j = lane - b
            ok = j >= top
        else:
            j = lane + b
            ok = j <= top
        j = np.where(ok, j, lane) & 31
        if m is not None and not np.take_along_axis(np.asarray(m), j, 1)[m].all():
            self.m.report.add("shfl from an inactive lane", None, mode)
        return np.take_along_axis(a, j, 1), ok

    def redux(self, what, ty, a, members, m):
        self._whole(m, None, "redux")
        a = self.full(a, np.asarray(a).dtype)
        fn = {
            "max": np.maximum,
            "min": np.minimum,
            "add": np.add,
            "or": np.bitwise_or,
            "and": np.bitwise_and,
            "xor": np.bitwise_xor,
        }[what]
        return np.repeat(fn.reduce(a, axis=1, keepdims=True), 32, 1).view(u32)

    def vote(self, what, p, m):
        p = self.full(p, np.bool_)
        live = p if m is None else p & m
        if what == "ballot":
            return np.repeat((live.astype(u32) << np.arange(32, dtype=u32)).sum(1, keepdims=True, dtype=u32), 32, 1)
        if what == "any":
            return np.repeat(live.any(1, keepdims=True), 32, 1)
        if what == "all":
            return np.repeat((p if m is None else p | ~m).all(1, keepdims=True), 32, 1)
        raise NotImplementedError(what)


def _tables():
    lane = np.arange(32)
    g, t = lane >> 2, lane & 3
    tables = {}

    def invert(row, col, rows, cols):
        """row, col: (32, n) of each lane's values -> for each (row, col) the flat place."""
        out = np.full(rows * cols, -1)
        out[(row * cols + col).ravel()] = np.arange(row.size)
        assert (out >= 0).all()
        return out

    def spread(*pairs):
        row = np.stack([np.broadcast_to(p[0], 32) for p in pairs], 1)
        col = np.stack([np.broadcast_to(p[1], 32) for p in pairs], 1)
        return row, col

    pc = invert(*spread((g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)), 16, 8)
    for k, regs in ((16, ((0, 0), (8, 0), (0, 8), (8, 8))), (8, ((0, 0), (8, 0)))):
        a = invert(*spread(*((g + r, 2 * t + c + h) for r, c in regs for h in (0, 1))), 16, k)
        b = invert(*spread(*((2 * t + c + h, g) for c in range(0, k, 8) for h in (0, 1))), k, 8)
        tables[f"m16n8k{k}", "16"] = (a, b, 16, 8, k)
    a = invert(*spread((g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)), 16, 8)
    b = invert(*spread((t, g), (t + 4, g)), 8, 8)
    tables["m16n8k8", "tf32"] = (a, b, 16, 8, 8)
    a = invert(*spread((g, t), (g + 8, t)), 16, 4)
    b = invert(*spread((t, g)), 4, 8)
    tables["m16n8k4", "tf32"] = (a, b, 16, 8, 4)
    return tables, pc


MMA, PC = _tables()


def WROW(N):
    lane, reg = np.meshgrid(np.arange(32), np.arange(N // 2), indexing="ij")
    return (lane >> 2) + 8 * (reg // 2 % 2)


def WCOL(N):
    lane, reg = np.meshgrid(np.arange(32), np.arange(N // 2), indexing="ij")
    return 8 * (reg // 4) + 2 * (lane & 3) + reg % 2
