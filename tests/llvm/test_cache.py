"""Compiled code on disk: for the user alone, whole or not at all, and never worth more than a compilation."""

import ast
import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

import llvmlite
from compiled_loop import Layer, parity
from fences import forget
from processes import ROOT, python

from tritongru.llvm import cache, compiling, launch
from tritongru.planning.instruction_sets import host_sets

pytestmark = pytest.mark.skipif(sys.platform == "win32" or not host_sets(), reason="POSIX, and a loop for this CPU")

KEY, CODE = "a" * 64, b"code" * 1000


@pytest.fixture(autouse=True)
def passes_of_this_test():
    """What a test has compiled goes with it."""
    yield
    compiling._function_of.cache_clear()
    forget()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "tritongru")
    return tmp_path / "tritongru"


def compiled_again(monkeypatch, kernel="forward"):
    """The pass as a new process gets it, and whether it was compiled."""
    compilations = []
    plain = compiling.optimized
    with monkeypatch.context() as patch:
        patch.setattr(compiling, "optimized", lambda text: compilations.append(text) or plain(text))
        compiling._function_of.cache_clear()
        run = compiling.function_of(host_sets()[0], "float", kernel)
    return run, len(compilations)


def is_right(run, monkeypatch):
    """Whether a forward with this machine code has torch's results."""
    plain = launch.function_of
    with monkeypatch.context() as patch:
        patch.setattr(
            launch,
            "function_of",
            lambda isa, scalar, kernel: run if kernel == "forward" else plain(isa, scalar, kernel),
        )
        return not parity(Layer(T=2, H=9), host_sets()[0])


def files(folder):
    return sorted(folder.iterdir())


def test_what_is_written_is_read(folder):
    assert cache.read(KEY) is None
    cache.write(KEY, CODE)
    assert cache.read(KEY) == CODE
    assert files(folder) == [folder / KEY]


def test_files_are_for_the_user_alone(folder):
    before = os.umask(0)
    try:
        cache.write(KEY, CODE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600


def test_a_pass_is_compiled_once(folder, monkeypatch):
    assert compiled_again(monkeypatch)[1] == 1
    run, compilations = compiled_again(monkeypatch)
    assert compilations == 0
    assert len(files(folder)) == 1
    assert is_right(run, monkeypatch)


DAMAGES = {
    "a bit": lambda code: code[:1000] + bytes([code[1000] ^ 1]) + code[1001:],
    "the checksum": lambda code: b"\0" * 32 + code[32:],
    "cut off": lambda code: code[:-1],
    "half": lambda code: code[: len(code) // 2],
    "short": lambda code: code[:10],
    "empty": lambda code: b"",
    "longer": lambda code: code + b"\0",
    "other": lambda code: b"#!/bin/sh\n",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_read_and_is_replaced(damage, folder):
    cache.write(KEY, CODE)
    whole = (folder / KEY).read_bytes()
    (folder / KEY).write_bytes(damage(whole))
    assert cache.read(KEY) is None
    cache.write(KEY, CODE)
    assert (folder / KEY).read_bytes() == whole


@pytest.mark.parametrize("damage", [DAMAGES["half"], DAMAGES["empty"]], ids=["half", "empty"])
def test_a_pass_of_a_damaged_file_is_compiled_again(damage, folder, monkeypatch):
    compiled_again(monkeypatch)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    run, compilations = compiled_again(monkeypatch)
    assert compilations == 1
    assert path.read_bytes() == whole
    assert is_right(run, monkeypatch)


def test_a_write_that_stops_leaves_nothing(folder, monkeypatch):
    """Neither the file nor a temporary one, whatever step fails."""
    cache.write(KEY, CODE)
    for module, name in ((os, "fdopen"), (os, "replace"), (cache.tempfile, "mkstemp")):

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            cache.write("b" * 64, CODE)
        assert files(folder) == [folder / KEY], name


def test_a_full_disk_costs_the_compilation_alone(folder, monkeypatch):
    class Full:
        def __init__(self, handle, mode):
            self.file = open(handle, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", Full)
    run, compilations = compiled_again(monkeypatch)
    assert compilations == 1
    assert is_right(run, monkeypatch)
    assert not files(folder)


def test_a_writer_never_shows_half_a_file(folder, monkeypatch):
    """The name appears when all is there."""
    plain, seen = os.replace, []

    def replace(source, target):
        seen.append((Path(target).exists(), Path(source).read_bytes(), Path(source).parent))
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)
    cache.write(KEY, CODE)
    assert seen == [(False, hashlib.sha256(CODE).digest() + CODE, folder)]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_not_used(mode, folder):
    cache.write(KEY, CODE)
    folder.chmod(mode)
    cache.write("b" * 64, CODE)
    assert files(folder) == [folder / KEY]
    assert cache.read(KEY) is None, "whoever may write there may have put it there"


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_may_write_to_is_not_read(mode, folder):
    cache.write(KEY, CODE)
    (folder / KEY).chmod(mode)
    assert cache.read(KEY) is None


def test_what_belongs_to_someone_else_is_not_used(folder, monkeypatch):
    cache.write(KEY, CODE)
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    assert cache.read(KEY) is None
    cache.write("b" * 64, CODE)
    assert files(folder) == [folder / KEY]


def test_a_folder_of_someone_else_is_not_used(folder, monkeypatch):
    """Though the file in it is the user's own."""
    cache.write(KEY, CODE)
    plain = os.fstat

    def stat_of(found, uid):
        values = list(found)
        values[stat.ST_UID] = uid
        return os.stat_result(values)

    stranger = stat_of(folder.stat(), os.getuid() + 1)
    monkeypatch.setattr(Path, "stat", lambda self, **_: stranger)
    monkeypatch.setattr(os, "fstat", plain)
    cache.write("b" * 64, CODE)
    monkeypatch.undo()
    assert files(folder) == [folder / KEY]


@pytest.mark.parametrize("where", ["a file", "missing", "below a file"])
def test_without_a_folder_each_process_compiles(where, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    place = {"a file": "file", "missing": "none", "below a file": "file/below"}[where]
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / place)
    if where == "missing":

        def refused(*_, **__):
            raise PermissionError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", refused)
    run, compilations = compiled_again(monkeypatch)
    assert compilations == 1
    assert is_right(run, monkeypatch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_folder_that_is_full_of_other_things(folder):
    """A folder in the place of a file, and names that are no keys."""
    (folder / KEY).mkdir(parents=True)
    folder.chmod(0o700)
    (folder / "notes.txt").write_text("mine")
    assert cache.read(KEY) is None
    cache.write(KEY, CODE)
    assert [p.name for p in files(folder)] == [KEY, "notes.txt"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_nobody_knows_where_home_is(monkeypatch):
    """No HOME, no XDG_CACHE_HOME, and a user that the system does not know."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    cache.write(KEY, CODE)
    assert cache.read(KEY) is None


def test_where_the_folder_is(tmp_path, monkeypatch):
    """As the XDG directories say; a relative one is to be ignored."""
    if sys.platform == "darwin":
        assert cache._folder() == Path.home() / "Library" / "Caches" / "tritongru"
        return
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = tmp_path / "home" / ".cache" / "tritongru"
    assert cache._folder() == home
    for name, found in (("", home), ("relative/path", home), (str(tmp_path / "own"), tmp_path / "own" / "tritongru")):
        monkeypatch.setenv("XDG_CACHE_HOME", name)
        assert cache._folder() == found


def test_the_key_is_of_everything_that_the_code_depends_on(folder, monkeypatch):
    """Another llvmlite, CPU, feature, instruction set, type or pass has code of its own."""
    keys = []
    monkeypatch.setattr(cache, "read", lambda key: keys.append(key))
    monkeypatch.setattr(cache, "write", lambda key, code: None)
    best = host_sets()[0]

    def key(isa=best, scalar="float", kernel="forward", **changed):
        with monkeypatch.context() as patch:
            patch.setattr(compiling, "source", lambda *_: f"define void @{kernel}(ptr %call) {{ ret void }}")
            if "version" in changed:
                patch.setattr(llvmlite, "__version__", changed["version"])
            if "target" in changed:
                patch.setattr(compiling, "_host_target", lambda isa: changed["target"])
            if "sources" in changed:
                patch.setattr(cache, "SOURCES", changed["sources"])
            compiling._function_of.cache_clear()
            compiling.function_of(isa, scalar, kernel)
        return keys[-1]

    cpu, features = compiling._host_target(best)
    found = [key(), key(kernel="backward"), key(scalar="double"), key(version="0.0.1"), key(sources=b"changed")]
    found += [key(target=(cpu, features + ",-adx")), key(isa=host_sets()[-1])]
    if sys.platform == "linux" and best in ("avx2", "avx512"):
        found += [key(target=("x86-64-v3", features))]
    assert len({*found}) == len(found) - (host_sets()[-1] == best)
    assert key() == found[0]


def test_texts_of_a_key_do_not_run_together():
    assert len({cache.key_of("ab", "c"), cache.key_of("a", "bc"), cache.key_of("abc"), cache.key_of("1 a", "")}) == 4


def test_every_source_of_the_code_is_in_the_key(monkeypatch):
    """What writes the code, and what that takes from elsewhere: the order of a call's fields, the length of a strip."""
    package = Path(compiling.__file__).parents[1]
    writers = [package / "llvm" / "language.py", package / "llvm" / "compiling.py", *package.glob("llvm/passes/*.py")]
    names = {
        node.module
        for path in writers
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tritongru.")
    }
    needed = {Path(sys.modules[name].__file__) for name in names if name != "tritongru.llvm"} | set(writers)
    read, plain = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or plain(path))
    cache._sources()
    assert not [str(path.relative_to(package)) for path in needed - set(read)]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    """Both compile, both are right, and one whole file is left."""
    code = """
import torch, tritongru
torch.manual_seed(0)
gru, x = tritongru.GRU(5, 9, impl="llvm").requires_grad_(False), torch.randn(3, 2, 5)
torch.testing.assert_close(gru(x)[0], gru.to_torch()(x)[0], rtol=0, atol=1e-6)
print("right")
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    assert [run.communicate(timeout=300)[0] for run in runs] == ["right\n"] * 2
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 1
    data = left[0].read_bytes()
    assert data[:32] == hashlib.sha256(data[32:]).digest()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["file", "/proc/nowhere", ""])
def test_no_home_in_a_process(home, tmp_path):
    """A user whom the system does not know, in a container say: right all the same, and nothing lies about."""
    (tmp_path / "file").write_text("no folder")
    code = f"""
import os
os.environ.pop("XDG_CACHE_HOME", None)
os.environ["HOME"] = {str(tmp_path / home) if home == "file" else home!r}
import torch, tritongru
gru, x = tritongru.GRU(5, 9, impl="llvm").requires_grad_(False), torch.randn(3, 2, 5)
torch.testing.assert_close(gru(x)[0], gru.to_torch()(x)[0], rtol=0, atol=1e-6)
print("right")
"""
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert run.stdout == "right\n", run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
