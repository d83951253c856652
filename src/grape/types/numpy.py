"""Arrays and scalars of numpy travel once this module is imported, in the module that defines the topology::

    import grape.types.numpy

An array is ``{"dtype": "<f8", "shape": [2, 3], "data": bytes}``, its elements in C order. A scalar is the builtin of
the same value; datetime64 is text. Annotations may be ``np.ndarray``, ``NDArray[np.float64]`` (then the dtype is
checked), and types of scalars.
"""

from __future__ import annotations

import math
import re
import typing
from typing import Any, Final

import numpy as np

from grape.model import own
from grape.model.plain import shown

MAX_ARRAY: Final = 64 << 20
"""Bytes of an array at most; looked at before anything is copied. (An event has a limit of its own, `max-event`.)"""
_MAX_DIMENSIONS: Final = 32
_DTYPE: Final = re.compile(r"[<>|=]?(?:[biufcSU?]\d{0,9}|[mM]8(?:\[\d{0,9}[a-zA-Z]{1,2}\])?)")


def _encode_array(array: Any) -> dict[str, Any]:
    if type(array) is not np.ndarray:
        raise TypeError(f"a {type(array).__name__} would lose what it has beside its elements; emit np.asarray(...)")
    text = array.dtype.str
    if not _DTYPE.fullmatch(text) or array.dtype.hasobject or array.dtype.names is not None:
        raise TypeError(f"an array of dtype {array.dtype} cannot travel; numbers, booleans, dates and text can")
    if array.nbytes > MAX_ARRAY:
        raise ValueError(f"an array of {array.nbytes:,} bytes is over {MAX_ARRAY:,}")
    return {"dtype": text, "shape": list(array.shape), "data": array.tobytes()}


def _decode_array(asked: Any, value: Any) -> Any:
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data"}:
        raise TypeError(f"an array is a map of dtype, shape and data, not {shown(value)}")
    text, shape, data = value["dtype"], value["shape"], value["data"]
    if type(text) is not str or not _DTYPE.fullmatch(text):
        raise ValueError(f"dtype {shown(text)} cannot be one of an array")
    dtype = np.dtype(text)
    if type(data) is not bytes:
        raise TypeError(f"the data of an array are bytes, not {shown(data)}")
    if type(shape) is not list or len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise TypeError("the shape of an array is a list of whole numbers, 32 at most")
    size = math.prod(shape) * dtype.itemsize
    if size != len(data):
        raise ValueError(f"an array of shape {shape} and dtype {text} has {size:,} bytes, not {len(data):,}")
    wanted = _dtype_of(asked)
    if wanted is not None and not np.issubdtype(dtype, wanted):
        raise TypeError(f"an array of {dtype} where one of {wanted.__name__} is asked for")
    if not dtype.itemsize:
        return np.empty(shape, dtype)
    return np.frombuffer(bytearray(data), dtype).reshape(shape)  # a copy: arrays can be written


def _dtype_of(asked: Any) -> Any:
    """float64 of NDArray[float64]; None if anything goes."""
    for part in typing.get_args(asked)[1:]:
        for scalar in typing.get_args(part):
            if isinstance(scalar, type) and issubclass(scalar, np.generic):
                return scalar
    return None


def _encode_scalar(scalar: Any) -> Any:
    if isinstance(scalar, np.datetime64):
        return str(scalar)
    if isinstance(scalar, np.longdouble | np.complexfloating | np.timedelta64 | np.void | np.object_):
        raise TypeError(f"a {type(scalar).__name__} cannot travel; make a builtin of it")
    return scalar.item()


_SCALARS: Final[tuple[tuple[type, tuple[type, ...]], ...]] = (
    (np.bool_, (bool,)),
    (np.integer, (int,)),
    (np.floating, (float, int)),
    (np.str_, (str,)),
    (np.bytes_, (bytes,)),
    (np.datetime64, (str,)),
)


def _decode_scalar(asked: Any, value: Any) -> Any:
    for kind, builtins in _SCALARS:
        if issubclass(asked, kind) and type(value) in builtins:
            if issubclass(asked, np.integer):
                limits = np.iinfo(asked)
                if not limits.min <= value <= limits.max:
                    raise ValueError(f"{value} is out of the range of {asked.__name__}")
            return asked(value)
    raise TypeError(f"Expected `{asked.__name__}`, got {shown(value)}")


def _guarded(function: Any) -> Any:
    """numpy raises what it likes; here it is a value that does not fit."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (TypeError, ValueError):
            raise
        except Exception as e:
            raise ValueError(f"{type(e).__name__}: {e}") from None

    return call


own.registered[np.ndarray] = own.Own(_guarded(_encode_array), _guarded(_decode_array), __name__)
own.registered[np.generic] = own.Own(_guarded(_encode_scalar), _guarded(_decode_scalar), __name__)
