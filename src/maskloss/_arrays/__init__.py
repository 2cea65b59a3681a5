"""Which library an array is of: asked once, answered by the namespace `xp` that the rest of the package computes with.

A library has a module here; what it has in common with the others stands in standard.py. No framework is imported
before an array of it was given, and each by a statement: torch.compile traces no import_module.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from array_api_compat import is_cupy_array, is_jax_array, is_numpy_array

from .standard import BINDINGS as BINDINGS
from .standard import Array as Array
from .standard import Namespace as Namespace
from .standard import called_while_traced as called_while_traced
from .standard import is_numpy_scalar as is_numpy_scalar
from .standard import is_static as is_static

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A")  # the arrays of one library

INTEGERS = frozenset(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))
HALVES = frozenset(("float16", "bfloat16"))
FLOATS = HALVES | {"float32", "float64"}


def is_numpy(x: object) -> bool:
    """Of whatever dtype: array-api-compat takes NumPy's arrays of JAX's float0 for JAX's, and types are remembered."""
    kind = type(x)
    return (kind.__module__ == "numpy" and kind.__name__ == "ndarray") or is_numpy_array(x)


def is_strict_array(x: object) -> bool:
    return type(x).__module__.partition(".")[0] == "array_api_strict"


def numpy_namespace() -> Namespace:
    from .numpy import xp

    return xp


def jax_namespace() -> Namespace:
    from .jax import xp

    return xp


def cupy_namespace() -> Namespace:
    from .cupy import xp

    return xp


def strict_namespace() -> Namespace:
    from .strict import xp

    return xp


# How each library but torch is recognised, and where its namespace is.
KINDS: list[tuple[Callable[[Any], bool], Callable[[], Namespace]]] = [
    (is_numpy, numpy_namespace),
    (is_jax_array, jax_namespace),
    (is_cupy_array, cupy_namespace),
    (is_strict_array, strict_namespace),
]
_namespaces: dict[type, Namespace] = {}
_torch: Any = None  # while nobody has imported it
_torch_namespace: Any = None


def namespace_of(x: object) -> Namespace | None:
    """The namespace of the library of `x`; None where `x` is no array of a library known here."""
    global _torch, _torch_namespace
    if _torch is None:
        # Kept: torch.compile, where it meets sys.modules, goes through all of it, and fails if an import comes between.
        _torch = sys.modules.get("torch")
    # torch first: array-api-compat's tests are behind lru_cache, and torch.compile warns of it when it traces them.
    if _torch is not None and isinstance(x, _torch.Tensor):
        if _torch_namespace is None:
            from .torch import xp

            _torch_namespace = xp
        return _torch_namespace
    kind = type(x)
    found = _namespaces.get(kind)
    if found is None:
        for recognised, namespace in KINDS:
            if recognised(x):
                found = _namespaces[kind] = namespace()
                break
    return found


def while_traced(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), which torch.compile runs while it traces; what it has read of this module stays as it was."""
    global _torch, _torch_namespace
    before = _torch, _torch_namespace
    result = function(*args)
    _torch, _torch_namespace = before
    return result


def as_array(x: Any) -> Any:
    """What stands for a JAX array, as the array: a parameter of Flax, say."""
    return x.__jax_array__() if hasattr(x, "__jax_array__") and namespace_of(x) is None else x


def dtype_name(x: Array) -> str:
    """'float32', 'bfloat16', 'int64', ... for every library.

    `isdtype` cannot serve: it is a TypeError on NumPy and CuPy for ml_dtypes' bfloat16.
    """
    dtype = x.dtype
    # NumPy puts a dtype's name together in 4 us. Of torch's no cache: torch.compile warns of each that it traces.
    if type(dtype).__module__.startswith("numpy"):
        return _numpy_name(dtype)
    return str(dtype).rpartition(".")[2]


@functools.cache
def _numpy_name(dtype: Any) -> str:
    kinds: dict[str, str] = {"U": "str", "S": "bytes"}  # whose names count bits, as in str672
    return kinds.get(dtype.kind) or dtype.name


def on_arrays(function: F) -> F:
    """Makes a public function behave on every library as its first array's asks for."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for x in args[:1] or kwargs.values():
            xp = namespace_of(x)
            xp = namespace_of(as_array(x)) if xp is None else xp
            if xp is not None:
                return xp.called(function, args, kwargs)
        return function(*args, **kwargs)

    return cast("F", wrapper)
