"""What is used of FFCV, imported in half the time.

On import it puts two entries into a dictionary of numba's, and compiling that takes 3 s of every
process; it is only ever read in Python, where a plain one does as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numba.typed


@contextmanager
def _plain_dictionaries() -> Iterator[None]:
    compiled = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = compiled


with _plain_dictionaries():
    from ffcv.fields.base import ARG_TYPE, Field
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.libffcv import ctypes_imdecode, ctypes_memcopy, ctypes_resize
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
    from ffcv.transforms import ToDevice, ToTensor
    from ffcv.traversal_order.base import TraversalOrder

__all__ = [
    "ARG_TYPE",
    "AllocationQuery",
    "Compiler",
    "Field",
    "IntDecoder",
    "Loader",
    "NDArrayDecoder",
    "Operation",
    "OrderOption",
    "SimpleRGBImageDecoder",
    "State",
    "ToDevice",
    "ToTensor",
    "TraversalOrder",
    "ctypes_imdecode",
    "ctypes_memcopy",
    "ctypes_resize",
]
