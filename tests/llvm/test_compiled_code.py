"""The machine code for every instruction set, whatever runs here: what its inner loops are made of."""

import functools
import re

import pytest

pytest.importorskip("llvmlite")

import llvmlite.binding as llvm

from tritongru.llvm import compiling
from tritongru.planning.instruction_sets import SETS

STACK = 1 << 16  # bytes of a function's frame at most
ELF = b"\x7fELF"

# A vector's register and its instructions, by (architecture's way, scalar).
FUSED = {
    "avx512": {"float": r"vfmadd\d+ps\s.*%zmm", "double": r"vfmadd\d+pd\s.*%zmm"},
    "avx2": {"float": r"vfmadd\d+ps\s.*%ymm", "double": r"vfmadd\d+pd\s.*%ymm"},
    "neon": {"float": r"fmla\s+v\d+\.4s", "double": r"fmla\s+v\d+\.2d"},
}
PRODUCTS = {"float": r"mulps\s.*%xmm", "double": r"mulpd\s.*%xmm"}
SUMS = {"float": r"addps\s.*%xmm", "double": r"addpd\s.*%xmm"}
VECTOR = r"%[xyz]mm|\b[qv]\d+"
ON_STACK = r"\(%rsp|\[sp"
SCALAR_FMA = r"\bvfn?m(add|sub)\d+s[sd]\b|\bfn?madd\s"

kernels = pytest.mark.parametrize("kernel", ["forward", "backward"])
scalars = pytest.mark.parametrize("scalar", ["float", "double"])
sets = pytest.mark.parametrize("isa", list(SETS))


@functools.cache
def assembly(isa, scalar, kernel):
    return compiling.assembly(SETS[isa], scalar, kernel)


def functions(text):
    """Name -> lines."""
    found, name = {}, ""
    for line in text.splitlines():
        label = re.match(r'"?([A-Za-z_][\w.]*)"?:', line)
        if label:
            name = label.group(1)
            found[name] = []
        elif name:
            found[name].append(line.strip())
    return found


def loops(lines):
    """The innermost loops: from a label to the jump back to it."""
    labels, found = {}, []
    for number, line in enumerate(lines):
        label = re.match(r"(\.L\w+):", line)
        jump = re.match(r"(?:j\w+|b\.\w+|b|cbn?z\s+\w+,|tbn?z\s+.*,)\s+(\.L\w+)", line)
        if label:
            labels[label.group(1)] = number
        elif jump and jump.group(1) in labels:
            found.append((labels[jump.group(1)] + 1, number))
    return [lines[a:b] for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]


def tiles(isa, scalar, kernel):
    """(name, rows, vectors, body) of every loop over k of a tile: the one with products."""
    product = FUSED[isa][scalar] if SETS[isa].fuses else PRODUCTS[scalar]
    for name, lines in functions(assembly(isa, scalar, kernel)).items():
        shape = re.fullmatch(r"[a-z_]+_(\d+)x(\d+)[a-z_]*", name)
        if shape:
            bodies = [body for body in loops(lines) if count(product, body)]
            assert len(bodies) == 1, name
            yield name, int(shape[1]), int(shape[2]), bodies[0]


def count(pattern, lines):
    return sum(re.search(pattern, line) is not None for line in lines)


@sets
@scalars
@kernels
def test_code(kernel, scalar, isa):
    """One test for all of it: compiling takes the time."""
    assert_nothing_from_elsewhere(kernel, scalar, isa)
    assert_loops_over_k_hold_packed_products_alone(kernel, scalar, isa)
    assert_no_scalar_multiply_add(kernel, scalar, isa)
    assert_frames_are_small(kernel, scalar, isa)


def assert_nothing_from_elsewhere(kernel, scalar, isa):
    """What a pass calls it has, or is given as a pointer."""
    text = assembly(isa, scalar, kernel)
    defined = set(functions(text))
    assert kernel in defined
    called = set(re.findall(r"movabsq\s+\$([A-Za-z_]\w*)", text))
    called |= set(re.findall(r"\b(?:callq?|jmpq?|bl|b)\s+([A-Za-z_]\w*)\s*$", text, re.MULTILINE))
    assert called
    assert called <= defined


@pytest.mark.every(5)
@sets
@scalars
@kernels
def test_objects(kernel, scalar, isa):
    """As they are loaded: without a symbol that is not their own."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = compiling.optimized(compiling.source(SETS[isa], scalar, kernel))
    triple = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}[SETS[isa].architecture]
    features = ",".join(f"+{feature}" for feature in SETS[isa].features)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=SETS[isa].cpu, features=features, opt=3)
    code = machine.emit_object(module)
    assert code.startswith(ELF)
    assert not undefined(code)


def undefined(code):
    """Names of an ELF64 object's symbols that it does not define."""

    def number(at, size):
        return int.from_bytes(code[at : at + size], "little")

    start, size, sections = number(40, 8), number(58, 2), number(60, 2)
    headers = [start + size * k for k in range(sections)]
    (table,) = [h for h in headers if number(h + 4, 4) == 2]  # SHT_SYMTAB
    at, length, names = number(table + 24, 8), number(table + 32, 8), number(headers[number(table + 40, 4)] + 24, 8)
    found = []
    for symbol in range(at + 24, at + length, 24):
        if number(symbol + 6, 2) == 0:  # SHN_UNDEF
            first = names + number(symbol, 4)
            found.append(code[first : code.index(b"\0", first)].decode())
    return found


def assert_loops_over_k_hold_packed_products_alone(kernel, scalar, isa):
    """One for each sum of a tile, on whole vectors."""
    shapes = set()
    for name, R, V, body in tiles(isa, scalar, kernel):
        shapes.add((R, V))
        if SETS[isa].fuses:
            assert count(FUSED[isa][scalar], body) == R * V, name
        else:
            assert count(PRODUCTS[scalar], body) == R * V, name
            assert count(SUMS[scalar], body) == R * V, name
        assert not count(r"\b(call|bl)", body), name
    assert {(R, max(widths)) for R, widths in SETS[isa].tiles.items()} <= shapes


def assert_no_scalar_multiply_add(kernel, scalar, isa):
    """Nor one in a library, which is what LLVM takes where a set has none."""
    text = assembly(isa, scalar, kernel)
    assert not re.search(SCALAR_FMA, text)
    assert not re.search(r"\bfmaf?\b", text)


@pytest.mark.parametrize("isa", SETS)
@scalars
def test_the_widest_tiles_keep_their_sums_in_registers(scalar, isa):
    most = SETS[isa].rows
    spilled = {
        name: count(ON_STACK, [line for line in body if re.search(VECTOR, line)])
        for name, R, V, body in tiles(isa, scalar, "forward")
        if most == R and max(SETS[isa].tiles[most]) == V
    }
    assert spilled == dict.fromkeys(spilled, 0)
    assert spilled


def assert_frames_are_small(kernel, scalar, isa):
    """A thread of OpenMP may have a small stack."""
    text = assembly(isa, scalar, kernel)
    sizes = [int(n) for n in re.findall(r"subq\s+\$(\d+), %rsp", text)]
    for number, shift in re.findall(r"sub\s+sp, sp, #(\d+)(?:, lsl #(\d+))?", text):
        sizes.append(int(number) << int(shift or 0))
    sizes += [int(n) for n in re.findall(r"\[sp, #-(\d+)\]!", text)]
    assert sizes
    assert max(sizes) <= STACK
    assert not re.search(r"sub\w*\s+%r\w+, %rsp|sub\s+sp, sp, x", text), "a frame whose size is known only at run time"
