"""Whether this process was forked from one that had loaded this package; so it is imported with the package."""

from __future__ import annotations

import os

_forked = False


def is_child() -> bool:
    return _forked


def _remember() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember)
