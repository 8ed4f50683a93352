"""Reads the text of a kernel's PTX: its name, its parameters, and its instructions with the lines they come from."""

import re
from dataclasses import dataclass

from .words import width


@dataclass
class Instruction:
    n: int  # its place in Program.items
    line: int  # of the PTX text
    source: str  # file:line:column
    pred: str | None
    negated: bool
    op: str
    args: list[str]
    text: str


Item = Instruction | str  # an instruction or a label

CLASSES = {16: "rs", 32: "r", 64: "rd"}  # names of registers by width


def entry_name(text: str) -> str:
    m = re.search(r"\.entry\s+(\w+)", text)
    if m is None:
        raise ValueError("the PTX has no .entry")
    return m[1]


def required_threads(text: str) -> int:
    m = re.search(r"\.reqntid\s+(\d+)", text)
    return int(m[1]) if m else 0


def read_parameters(text: str) -> dict[str, tuple[int, int]]:
    """{name: (index, bits)}."""
    head = text[text.index(".entry") :]
    head = head[head.index("(") : head.index("\n)")]
    found = {}
    for line in head.splitlines():
        if m := re.search(r"\.param\s+(?:\.align \d+ )?\.(\w+)\s.*?(\w+_param_\d+)", line):
            found[m[2]] = int(m[2].rsplit("_", 1)[1]), width(m[1])
    return found


def read_items(text: str) -> list[Item]:
    return Body(text).items


class Body:
    """The statements between the braces of the entry."""

    def __init__(self, text: str) -> None:
        self.items: list[Item] = []
        self.files: dict[str, str] = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
        self.source = ""
        self.pending, self.line = "", 0  # a statement that has not ended, and the line where it began
        self.scopes: list[dict[str, str]] = []  # registers declared within braces, under names of their own
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.strip() == "{")
        for number, raw in enumerate(lines[start + 1 :], start + 2):
            if raw.startswith("}") or "End function" in raw:
                break
            self._read_line(raw, number)

    def _read_line(self, raw: str, number: int) -> None:
        line, _, comment = raw.partition("//")
        line = line.strip()
        if m := re.match(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)", line):
            name = self.files.get(m[1], m[1]).rsplit("/", 1)[-1]
            self.source = comment.strip() or f"{name}:{m[2]}:{m[3]}"
            return
        if line == "{":
            self.scopes.append({})
            return
        if line == "}":
            if self.scopes:
                self.scopes.pop()
            return
        while m := re.match(r"^([$\w]+):\s*(.*)$", line):
            self.items.append(m[1])
            line = m[2]
        if not line:
            return
        if not self.pending:
            self.line = number
        self.pending += " " + line
        while ";" in self.pending:
            statement, _, rest = self.pending.partition(";")
            self.pending = rest.strip()
            statement = statement.strip()
            while statement.startswith("{"):
                statement = statement[1:].strip()
                self.scopes.append({})
            if statement not in ("", "}"):
                self._statement(statement)
            while self.scopes and self.pending.startswith("}"):
                self.pending = self.pending[1:].strip()
                self.scopes.pop()

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith(".pragma"):
            return
        if text.startswith((".shared", ".local")):
            raise NotImplementedError(text)
        for names in self.scopes:
            for name, alias in names.items():
                text = re.sub(rf"(?<![\w%]){re.escape(name)}(?!\w)", alias, text)
        pred, negated, rest = None, False, text
        if m := re.match(r"^@(!?)(%\w+)\s+(.*)$", text):
            negated, pred, rest = bool(m[1]), m[2], m[3]
        op, _, operands = re.sub(r"\s", " ", rest).partition(" ")
        self.items.append(
            Instruction(len(self.items), self.line, self.source, pred, negated, op, split_operands(operands), text)
        )

    def _declare(self, text: str) -> None:
        m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text)
        if m is None:
            raise NotImplementedError(text)
        if "<" in m[2] or not self.scopes:
            return  # the width follows from the name
        kind = "p" if m[1] == "pred" else CLASSES[width(m[1])]
        for name in m[2].split(","):
            name = name.strip()
            self.scopes[-1][name] = f"%{kind}_{name.strip('%')}_{self.line}"


def split_operands(text: str) -> list[str]:
    """At the commas that are not within brackets."""
    found, depth, current = [], 0, ""
    for c in text.strip():
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += c
    if current.strip():
        found.append(current.strip())
    return found


def listed(operand: str) -> list[str]:
    """The registers of ``{ %r1, %r2 }``, or the operand alone."""
    operand = operand.strip()
    if operand.startswith("{"):
        return [part.strip() for part in operand[1:-1].split(",")]
    return [operand]


def address_parts(operand: str) -> tuple[str, int]:
    """Base and offset of ``[ %rd1 + 8 ]``."""
    m = re.match(r"^([%\w$.]+)\s*(?:\+\s*(-?(?:0x)?[0-9A-Fa-f]+))?$", operand.strip()[1:-1].strip())
    if m is None:
        raise NotImplementedError(operand)
    return m[1], int(m[2] or "0", 0)
