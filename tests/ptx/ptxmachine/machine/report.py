"""What a run found: one entry for each kind and instruction, with the first case's text."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ptxmachine.code.program import Instruction


@dataclass
class Finding:
    times: int
    text: str
    instruction: Instruction | None


class Report:
    def __init__(self, most: int) -> None:
        self.most = most
        self.found: dict[tuple[str, int], Finding] = {}  # by kind and line of the PTX text

    def add(self, kind: str, instruction: Instruction | None, text: str) -> None:
        key = kind, instruction.line if instruction else 0
        if key in self.found:
            self.found[key].times += 1
        else:
            self.found[key] = Finding(1, f"{kind}: {text}", instruction)

    def __len__(self) -> int:
        return len(self.found)

    def kinds(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.found)

    def lines(self) -> Iterator[str]:
        for found in list(self.found.values())[: self.most]:
            at = found.instruction
            where = f" [ptx {at.line}: {at.text}] [{at.source}]" if at else ""
            yield f"{found.times:6d}x {found.text}{where}"
