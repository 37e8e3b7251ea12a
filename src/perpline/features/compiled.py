"""Functions over numbers and arrays, compiled by numba with plain IEEE arithmetic and kept on disk."""

import hashlib
import inspect
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
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


def compiled_with(*modules: ModuleType) -> Callable[[Function], Function]:
    """Decorates a function whose parts come from these modules: kept on disk as `compiled` does it, and made anew also
    when the text of one of them changes. As a `part` it may not make arrays."""
    texts = "\0".join(inspect.getsource(module) for module in modules)

    def decorate(function: Function) -> Function:
        is_kept, folder = _has_cache(), _config.CACHE_DIR
        # numba looks at the function's own file only: other texts have a folder of their own.
        _config.CACHE_DIR = os.path.join(folder, hashlib.sha256(texts.encode()).hexdigest()[:16])
        try:
            made: Function = numba.njit(
                function, cache=is_kept, error_model="numpy", fastmath=False, nogil=True, **_NO_ARRAYS
            )
        finally:
            _config.CACHE_DIR = folder
        return made

    return decorate


def is_kept(function: Callable[..., object]) -> bool:
    """Whether the machine code of a `compiled` function is on the disk, made of its file as it is now."""
    of_function: Any = function
    file = getattr(of_function._cache, "_cache_file", None)  # numba has no question for it; without a cache no file
    return file is not None and bool(file._load_index())


@cache
def _has_cache() -> bool:
    """Make and name the folder of compiled functions; False, with a warning, where that cannot be done, and every
    process compiles for itself."""
    if not _config.CACHE_DIR:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        _config.CACHE_DIR = os.path.join(base, "perpline", "numba")
    folder = Path(_config.CACHE_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK) else "this user may not write there"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        message = f"every start compiles for some seconds, for nothing can be kept in {folder} ({problem})"
        warnings.warn(f"{message}: NUMBA_CACHE_DIR names another folder", RuntimeWarning, stacklevel=3)
    return not problem
