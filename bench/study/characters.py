"""Training, end to end: a character model over real text, once with ``impl="torch"`` and once with ``impl="triton"``.

The text is the language reference shown by Python's own help(), ``pydoc_data.topics`` of the standard library, so
nothing is downloaded. Both start from the same weights and see the same batches in the same order, for several seeds.
All seeds see the same batches too: only the initial weights vary, so the spread over seeds is the smallest noise that a
difference can fairly be compared with.

The verdict: over the second half of the curve, the mean absolute difference at the same seed must stay below the
standard deviation of torch's curve over seeds (averaged over the same steps), for every seed. That is what "trains the
same" means to a user, but it is coarse: tests/bench/test_characters.py compares step by step. No curve shows what Adam
evens out (a gradient times a constant) or never sees (the gradient of the initial state, which is carried detached);
the parity tests cover these.
"""

import hashlib
import importlib.util
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tritongru
from bench.measure.rows import Row, append, facts, file_name, number
from tritongru.planning.devices import device_facts
from tritongru.planning.plan import Plan, fp32_precision, plan_on

IMPLS = ("torch", "triton")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HELD_OUT = 0.1  # of the text: its end
POINTS = 6  # of the curve that the table shows


@dataclass(frozen=True)
class Setup:
    hidden: int
    batch: int
    time: int  # characters of a segment, over which gradients flow; the state is carried on detached
    steps: int
    rate: float
    unseen: int = 8  # most segments of held-out text to evaluate at the end
    seeds: int = 3
    dtype: str = "fp32"  # a key of DTYPES; bf16 is autocast over fp32 weights
    memory: str = "save"


ON_GPU = Setup(512, 32, 128, steps=300, rate=2e-3)
ON_CPU = Setup(32, 16, 12, steps=40, rate=2e-2, unseen=2)  # Triton's interpreter takes about 0.3 s a step
NARROWER = (176, 128, 64)  # if no kernel trains 512


@dataclass(frozen=True)
class Text:
    name: str
    characters: str  # the vocabulary, sorted
    training: Tensor  # (L,) int64, indices into the vocabulary
    held_out: Tensor  # the same

    def entropy(self) -> float:
        """Nats per character of a model that knows only how often each occurs."""
        counts = Counter(self.training.tolist())
        return -sum(n / len(self.training) * math.log(n / len(self.training)) for n in counts.values())


def read_text() -> Text:
    """The topics in alphabetical order. Several quote each other, so only the first copy of a paragraph is kept: none
    that is held out has been trained on."""
    from pydoc_data.topics import topics

    paragraphs = dict.fromkeys(part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n"))
    text = "\n\n".join(part for part in paragraphs if part)
    characters = "".join(sorted(set(text)))
    place = {character: index for index, character in enumerate(characters)}
    ids = torch.tensor([place[character] for character in text])
    kept = round((1 - HELD_OUT) * len(ids))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = f"pydoc_data.topics of Python {platform.python_version()} ({len(ids)} characters, sha256 {digest})"
    return Text(name, characters, ids[:kept], ids[kept:])


class CharacterModel(nn.Module):
    """From characters (T, B) and a state (1, B, H) to logits of the next characters (T, B, C) and the next state."""

    def __init__(self, characters: int, setup: Setup, impl: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, setup.hidden)
        self.gru = tritongru.GRU(setup.hidden, setup.hidden, impl=impl, memory=setup.memory)
        self.head = nn.Linear(setup.hidden, characters)

    def forward(self, ids: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.embedding(ids), state)
        return self.head(states), last


def segments(ids: Tensor, batch: int, time: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a text as ``batch`` parallel streams: characters and the ones that follow them, each (T, B)."""
    length = len(ids) // batch
    streams = ids[: batch * length].view(batch, length).t().contiguous()
    for start in range(0, length - time, time):
        yield streams[start : start + time], streams[start + 1 : start + time + 1]


def loss_of(model: CharacterModel, setup: Setup, ids: Tensor, next_ids: Tensor, state: Tensor | None) -> Any:
    """Mean nats per character, and the state after the segment."""
    dtype = DTYPES[setup.dtype]
    with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
        logits, state = model(ids, state)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), next_ids.flatten()), state


@dataclass(frozen=True)
class Curve:
    losses: list[float]  # of each step, in nats per character
    held_out: float  # after the last step


def train(text: Text, setup: Setup, impl: str, seed: int, device: torch.device) -> Curve:
    torch.manual_seed(seed)
    model = CharacterModel(len(text.characters), setup, impl).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=setup.rate)
    training, held_out = text.training.to(device), text.held_out.to(device)
    losses: list[Tensor] = []
    while len(losses) < setup.steps:
        state = None
        for ids, next_ids in segments(training, setup.batch, setup.time):
            optimizer.zero_grad()
            loss, state = loss_of(model, setup, ids, next_ids, state)
            loss.backward()
            state = state.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == setup.steps:
                break
    unseen, state = [], None
    with torch.no_grad():
        for ids, next_ids in islice(segments(held_out, setup.batch, setup.time), setup.unseen):
            loss, state = loss_of(model, setup, ids, next_ids, state)
            unseen.append(loss)
    return Curve(torch.stack(losses).tolist(), torch.stack(unseen).mean().item())


@dataclass(frozen=True)
class Verdict:
    difference: float  # mean over the curve's second half, for the worst seed
    noise: float  # standard deviation of torch's curve over seeds, mean over the same steps
    largest: float  # difference at any step and seed

    @property
    def same(self) -> bool:
        return self.difference < self.noise and math.isfinite(self.largest)


def judge(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Verdict:
    """Compare curves, one per seed, in the same order. A value that is not finite counts as a difference."""
    a, b = (torch.tensor(curves, dtype=torch.float64) for curves in (theirs, ours))
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"both need the same steps and seeds, at least two seeds; got {[*a.shape]}, {[*b.shape]}")
    second = slice(a.shape[1] // 2, None)
    apart = (a - b).abs()
    difference = apart[:, second].mean(dim=1).max()
    return Verdict(difference.item(), a[:, second].std(dim=0).mean().item(), apart.max().item())


def plan_of(setup: Setup, device: torch.device) -> Plan:
    dtype = DTYPES[setup.dtype]
    return plan_on(device, setup.hidden, dtype, batch=setup.batch, time=setup.time, training=True, impl="triton")


def setup_for(device: torch.device, asked: dict[str, Any]) -> Setup:
    """The device's default sizes, with those given in their place; 512 units are reduced to what a kernel can train."""
    wanted = {name: value for name, value in asked.items() if value is not None}
    setup = replace(ON_GPU if device.type == "cuda" else ON_CPU, **wanted)
    if device.type == "cuda" and "hidden" not in wanted:
        options = [replace(setup, hidden=hidden) for hidden in (setup.hidden, *NARROWER)]
        return next((option for option in options if plan_of(option, device).family != "torch"), setup)
    return setup


def refusal(text: Text, setup: Setup, device: torch.device) -> str:
    """Why this cannot run; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "The package triton is not installed; install it with: pip install triton."
    if plan_of(setup, device).family == "torch":
        return f"impl='triton' cannot train this model: {plan_of(setup, device).reason}."
    longest = len(text.held_out) // setup.batch - 1
    if setup.time > longest:
        return (
            f"{setup.batch} streams of the held-out text allow segments of {max(0, longest)} characters, not "
            f"{setup.time}; pass a smaller --batch or --time."
        )
    return ""


def curve_row(text: Text, setup: Setup, impl: str, seed: int, curve: Curve, family: str, where: Row) -> Row:
    """One curve, with its own keys beside the WHERE_KEYS of bench/measure/rows.py: it is not a time of a case."""
    shape = {"hidden": setup.hidden, "batch": setup.batch, "time": setup.time, "dtype": setup.dtype}
    precision = fp32_precision() if setup.dtype == "fp32" else None
    how = {"precision": precision, "memory": setup.memory, "rate": setup.rate, "text": text.name}
    found = {"losses": [number(loss) for loss in curve.losses], "held_out": number(curve.held_out)}
    return {"case": "characters", **shape, **how, "impl": impl, "family": family, **found, **where, "seed": seed}


def table(curves: dict[str, list[Curve]], verdict: Verdict) -> Iterator[str]:
    """The curve at a few steps and on the held-out text, over all seeds, and the verdict."""
    steps = len(curves["torch"][0].losses)
    points = sorted({round(1 + k * (steps - 1) / (POINTS - 1)) for k in range(POINTS)})
    columns: list[tuple[str, Callable[[Curve], float]]] = [
        *((f"step {point}", partial(_at, step=point - 1)) for point in points),
        ("held out", lambda curve: curve.held_out),
    ]
    yield f"{'':<10}{'torch':>9}{'triton':>9}{'largest difference':>21}{'std over seeds':>17}"
    for heading, value in columns:
        theirs, ours = ([value(curve) for curve in curves[impl]] for impl in IMPLS)
        largest = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
        means = "".join(f"{statistics.fmean(values):>9.4f}" for values in (theirs, ours))
        yield f"{heading:<10}{means}{largest:>21.1e}{statistics.stdev(theirs):>17.1e}"
    yield f"Largest difference at the same seed and step: {verdict.largest:.1e} nats."
    word, colour = ("below", "GREEN") if verdict.same else ("NOT below", "RED")
    yield (
        f"Second half, worst seed: mean difference {verdict.difference:.1e}, {word} torch's standard "
        f"deviation over seeds, {verdict.noise:.1e}: {colour}."
    )


def _at(curve: Curve, step: int) -> float:
    return curve.losses[step]


def say(line: str) -> None:
    print(line, flush=True)


def characters(out: Path, commit: str | None, **asked: Any) -> int:
    """Train, print the table, write the rows. ``asked``: fields of Setup; None for the device's default."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels import Triton
        torch.set_num_threads(1)  # a second one costs more in waiting than it gains at these sizes
    try:
        text = read_text()
    except ImportError:
        say("This Python has no pydoc_data, the text to train on; use one with the full standard library.")
        return 2
    setup = setup_for(device, asked)
    reason = refusal(text, setup, device)
    if reason:
        say(reason)
        return 2
    where = facts(None, commit)
    if device.type == "cuda":
        where = facts(torch.cuda.get_device_name(device), commit, device_facts(device).arch)
    families = {"torch": "torch", "triton": plan_of(setup, device).family}
    path = out / file_name("characters", where["gpu"], where["date"])
    say(f"Text: {text.name}; vocabulary {len(text.characters)}; {text.entropy():.3f} nats each by frequency alone.")
    place = where["gpu"] or "Triton's interpreter on the CPU"
    say(
        f"{place}, {setup.dtype}: hidden {setup.hidden}, batch {setup.batch}, "
        f"{setup.steps} steps of {setup.time} characters, {setup.seeds} seeds; kernels: {families['triton']}."
    )
    curves: dict[str, list[Curve]] = {impl: [] for impl in IMPLS}
    for seed in range(setup.seeds):
        for impl in IMPLS:
            curve = train(text, setup, impl, seed, device)
            curves[impl].append(curve)
            append(path, curve_row(text, setup, impl, seed, curve, families[impl], where))
            say(f"  seed {seed}, {impl}: {curve.losses[0]:.4f} to {curve.losses[-1]:.4f} nats per character")
    verdict = judge(*([curve.losses for curve in curves[impl]] for impl in IMPLS))
    say(f"Rows: {path}")
    for line in table(curves, verdict):
        say(line)
    return 0 if verdict.same else 1
