"""What a conversion changed, what it left alone and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

WHOLE = "(the model)"  # how a model that is itself a GRU is listed; its own name is empty


@dataclass(frozen=True)
class Swap:
    """A layer that was converted.

    Attributes:
        name: its name in ``model.named_modules()``, "" for the model itself; of a layer with several names the first.
        before: its class and sizes before, e.g. ``"torch.nn.GRU(8, 16)"``.
        after: its class now.
        also: its other names.
    """

    name: str
    before: str
    after: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """A layer that was left as it was.

    Attributes:
        name: as in `Swap`.
        kind: its class.
        reason: why, and what to do about it.
        also: as in `Swap`.
    """

    name: str
    kind: str
    reason: str
    also: tuple[str, ...] = ()


@dataclass(repr=False)
class Report:
    """What `tritongru.convert` did; ``print(report)`` shows it as a table.

    Attributes:
        model: the converted model, the same object that was passed in; None from `tritongru.patch`.
        swapped: the converted layers.
        left: GRUs that were left as they were, each with the reason.
        notes: what else to know, a sentence each.
    """

    model: nn.Module | None = None
    swapped: list[Swap] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = []
        if self.swapped:
            rows = [(spelled(one.name, one.also), one.before, one.after) for one in self.swapped]
            parts.append(table(("converted", "was", "is now"), rows))
        if self.left:
            rows = [(spelled(one.name, one.also), one.kind, one.reason) for one in self.left]
            parts.append(table(("left as it was", "class", "why"), rows))
        parts += [f"note: {text}" for text in self.notes]
        return "\n".join(parts) or "nothing was changed: no torch.nn.GRU or GRUCell was built"  # by patch

    __repr__ = __str__  # an interactive session shows the table


def shown(name: str) -> str:
    return name or WHOLE


def spelled(name: str, also: Sequence[str]) -> str:
    return ", ".join(map(shown, (name, *also)))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that are as wide as their longest entry, the last one excepted."""
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles) - 1)]
    lines = [titles, ["-" * width for width in widths] + ["-" * len(titles[-1])], *rows]
    return "\n".join(
        "  ".join([text.ljust(width) for text, width in zip(line, widths, strict=False)] + [line[-1]]) for line in lines
    )
