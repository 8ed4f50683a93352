"""Why there is no time of an implementation, as documents print it: a line for each reason, not for each case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

NOT_INSTALLED = "not installed on this machine"
# Reasons as rows hold them, and their plain words. What differs from case to case is left out, so that they add up.
PLAIN = {
    r"\S+ is not installed; .*": NOT_INSTALLED,
    r"(the kernels of \S+ need|a CUDA graph needs) a GPU": "needs a GPU",
    r"no time to ask for it alone after: .*": "not timed, because the time budget of the run had ended",
    r"(left out from \S+ on|all at once): no answer .*": "no answer within the time limit",
    r"one call takes [\d.]+ s, and no more than ([\d.]+) s are spent on one": r"one call takes longer than \1 s",
    r"a graph of about [\d,]+ launches is left out; ([\d,]+) are the most": r"more than \1 launches for one CUDA graph",
    r"as shipped, ours takes its \w+ kernels here": '`impl="auto"` already runs the kernels, so this is the same',
    r".+: error [\d.e+-]+, torch's [\d.e+-]+, allowed [\d.e+-]+": "not timed, because the error exceeds the limit",
}
NAMED = 4  # cases of a reason that are named; of more, their number is given


def plain(reason: str) -> str:
    for pattern, words in PLAIN.items():
        if found := re.fullmatch(pattern, reason):
            return found.expand(words)
    return reason


def condensed(untimed: Iterable[tuple[str, str, str]], cases: int) -> list[str]:
    """``untimed``: implementation, case and reason. A package that is not installed has no other reason, whatever its
    rows say. ``cases``: how many there are in all; with a reason that holds for each, none is named."""
    found: dict[str, dict[str, list[str]]] = {}
    known = [(impl, case, plain(reason)) for impl, case, reason in untimed]
    absent = {impl for impl, _, reason in known if reason == NOT_INSTALLED}
    for impl, case, reason in known:
        if impl in absent:
            found.setdefault(NOT_INSTALLED, {})[impl] = []
        else:
            found.setdefault(reason, {}).setdefault(impl, []).append(case)
    return [f"- {reason[0].upper()}{reason[1:]}: {_named(own, cases)}." for reason, own in found.items()]


def _named(cases_of: Mapping[str, Sequence[str]], cases: int) -> str:
    """The implementations, those with the same cases together."""
    together: dict[str, list[str]] = {}
    for impl, own in cases_of.items():
        whole = not own or len(own) == cases
        where = "" if whole else f" ({'; '.join(own) if len(own) <= NAMED else f'{len(own)} of {cases}'})"
        together.setdefault(where, []).append(impl)
    return "; ".join(f"{', '.join(impls)}{where}" for where, impls in together.items())


def hows(said: Iterable[tuple[str, str]]) -> list[str]:
    """How each implementation was called, once, with all versions. ``said``: implementation, and "versions: how"."""
    found: dict[tuple[str, str], list[str]] = {}
    for impl, text in said:
        versions, _, how = text.partition(": ") if ": " in text else ("", "", text)
        found.setdefault((impl, how), []).append(versions)
    lines = []
    for (impl, how), of in found.items():
        known = "; ".join(sorted({version for version in of if version}))
        lines.append(f"- {impl}: {how}{f' ({known})' if known else ''}.")
    return lines
