"""One case: a launch form with sizes and operands, as a line of JSON; and what its run has found."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tritongru.planning import launches
from tritongru.planning.launches import AnyLaunch, Launch, PersistentLaunch

if TYPE_CHECKING:
    from tritongru.kernels.single_step.launch import Form as SingleForm

TABLES = {
    "resident": launches.launches,
    "persistent": launches.persistent_launches,
    "stepwise": launches.stepwise_launches,
}
Key = tuple[str, str, int | None]  # kernel, kind, padded hidden size; None of stepwise kernels
SINGLE = "single"  # the kernel of a single step, whose forms are in no table


@functools.cache
def forms(family: str, triton: str | None = None, ragged: bool = False) -> dict[Key, dict[str, AnyLaunch]]:
    """The launches of a family's table for CUDA, by `form_of`, as the installed Triton or another compiles them."""
    found: dict[Key, dict[str, AnyLaunch]] = {}
    table: dict[Any, tuple[AnyLaunch, ...]] = TABLES[family](triton, ragged)  # type: ignore[assignment]
    for (backend, kernel, kind, *size), rows in table.items():
        if backend == "cuda":
            found[kernel, kind, size[0] if size else None] = {form_of(row): row for row in rows}
    return found


def single_forms(has_fences: bool | None = None) -> dict[str, dict[str, SingleForm]]:
    """By kind of arithmetic and name: all, or those of a Triton that ``has_fences`` or not, on sm_90."""
    from tritongru.kernels.single_step import launch  # loads Triton

    asked = (True, False) if has_fences is None else (has_fences,)
    return {
        kind: {form.name: form for has in asked for form in launch.forms_of(kind, "sm_90", has)}
        for kind in launch.FORMS
    }


def form_of(launch: AnyLaunch) -> str:
    """What tells a launch from the others of its kernel, kind and size, wherever it stands in the table."""
    if isinstance(launch, Launch):
        return f"{chunks_text(launch.chunks)}-{launch.num_warps}w-{launch.stages}s"
    if isinstance(launch, PersistentLaunch):
        return f"{launch.name}-{launch.k_split}x{chunks_text(launch.chunks)}-{launch.slots}"
    return launch.name


def chunks_text(chunks: tuple[int, ...]) -> str:
    return "+".join(map(str, chunks))


@dataclass(frozen=True)
class Case:
    """``size``: hidden units for which the form is in the table, None of stepwise kernels; ``H``: those of the layer;
    ``packed``: rows of different lengths; ``groups``: batch tiles that a persistent kernel works on at a time (all of
    them if None); ``parts``: steps of each part of a backward pass; ``unaligned``: tensors that begin one element after
    a multiple of 16 bytes; ``ragged``: the longest length and the rows of the reset states, of sequences that end early
    and begin anew (of a single step the rows are 0: its reset states are zeros); ``inputs``: features of a single step.
    The others say whether an operand or a result is there."""

    family: str
    kernel: str
    kind: str
    size: int | None
    form: str
    dtype: str
    H: int
    T: int
    B: int
    D: int = 1
    packed: bool = False
    bias: bool = True
    h0: bool = True
    dy: bool = True
    gates: bool = True
    groups: int | None = None
    parts: tuple[int, ...] | None = None
    unaligned: tuple[str, ...] = ()
    ragged: tuple[int, int] | None = None
    inputs: int | None = None
    y: bool = True

    def to_json(self) -> dict[str, Any]:
        """Without what has its default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    @staticmethod
    def from_json(found: dict[str, Any]) -> Case:
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return Case(**found | lists)

    def launch(self, triton: str | None = None) -> AnyLaunch:
        """The launch of the table, as in `forms`.

        Raises:
            LookupError: if the table has no such form any more.
        """
        table = forms(self.family, triton, self.ragged is not None)
        found = table.get((self.kernel, self.kind, self.size), {}).get(self.form)
        if found is None:
            raise LookupError(f"no {self.family} form {self.form} for {self.kernel}, {self.kind}, {self.size}")
        return dataclasses.replace(found, groups=self.turns(found)) if isinstance(found, PersistentLaunch) else found

    def single(self) -> SingleForm:
        """The form of the single step.

        Raises:
            LookupError: if there is no such form any more.
        """
        found = single_forms()[self.kind].get(self.form)
        if found is None:
            raise LookupError(f"no form {self.form} of the single step for {self.kind}")
        return found

    def turns(self, launch: PersistentLaunch) -> int:
        return self.groups or -(-self.B // launch.block_b)


@dataclass
class Result:
    """``parity``: of each result, its error as a part of what is allowed; ``counts``: see `Session.counts`."""

    parity: dict[str, float] = field(default_factory=dict)
    reports: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0  # in the machine
    error: str = ""

    @property
    def worst(self) -> float:
        return max(self.parity.values(), default=float("inf"))

    @property
    def clean(self) -> bool:
        return not self.error and not self.reports and self.worst <= 1
