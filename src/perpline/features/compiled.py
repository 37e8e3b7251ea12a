"""Functions over numbers and arrays, compiled by numba with plain IEEE arithmetic and kept on disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

_config: Any = numba.config  # its names are made when it is imported, which no checker sees

_NO_ARRAYS: Any = {"_nrt": False}  # an option that numba's own types do not know

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function, compiled at its first call: no fastmath, no threads, so that the same input gives the same bits.

    The machine code goes to XDG_CACHE_HOME/perpline/numba (or NUMBA_CACHE_DIR) and is found there by the next process.
    It is made anew when the function's own file changes, and only then: what it takes from other files must be handed
    in. Division by zero gives inf or NaN as in C.
    """
    made: Function = numba.njit(function, cache=_has_cache(), error_model="numpy", fastmath=False, nogil=True)
    return made


def part(function: Function) -> Function:
    """The same for what only compiled functions call: it is kept as a part of them.

    It may not make arrays: numba would count references to those handed in as well, two locked instructions for each
    call, which was a quarter of the time of the kernel.
    """
    made: Function = numba.njit(function, error_model="numpy", fastmath=False, nogil=True, **_NO_ARRAYS)
    return made


def _has_cache() -> bool:
    """Name the folder of compiled functions; False where none can be made, and every process compiles for itself."""
    if not _config.CACHE_DIR:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = Path(base) / "perpline" / "numba"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        _config.CACHE_DIR = str(folder)
    return os.access(_config.CACHE_DIR, os.W_OK)
