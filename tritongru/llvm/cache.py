"""A per-user cache of compiled code on disk.

Anyone who could write to it could run code as the user, so the folder must belong to the user and be writable by nobody
else, and files are read only if their checksum matches. Any failure costs a compilation and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

SIZE = hashlib.sha256().digest_size
SHAPING = ("cpu_plan", "instruction_sets")  # files of the plan that shape the code


def key_of(*what: str) -> str:
    """The key of the code that results from ``what`` and our sources."""
    found = hashlib.sha256(SOURCES)
    for text in what:
        found.update(f"{len(text)} {text}".encode())
    return found.hexdigest()


def read(key: str) -> bytes | None:
    try:
        folder = _folder()
        if not _is_ours(folder.stat()):
            return None
        with (folder / key).open("rb") as file:
            if not _is_ours(os.fstat(file.fileno())):
                return None
            checksum, code = file.read(SIZE), file.read()
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return None
    return code if hashlib.sha256(code).digest() == checksum else None


def write(key: str, code: bytes) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(folder.stat()):
            return
        handle, name = tempfile.mkstemp(dir=folder)  # readable by the user only
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, folder / key)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _folder() -> Path:
    if sys.platform == "win32":
        return Path.home() / "AppData" / "Local" / "tritongru" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tritongru"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "tritongru"


def _is_ours(found: os.stat_result) -> bool:
    if sys.platform == "win32":  # other users have no access to a user's folders there
        return True
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _sources() -> bytes:
    found = hashlib.sha256()
    package = Path(__file__).parent.parent
    for path in (*sorted(package.glob("llvm/**/*.py")), *(package / "planning" / f"{name}.py" for name in SHAPING)):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.digest()


SOURCES = _sources()  # at import, before the files can change
