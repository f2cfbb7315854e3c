"""zlib's own inflate through ctypes: what the standard library keeps to itself.

Python's zlib module neither stops at the border of a block nor starts at one, so it cannot
take up a stream in the middle. zlib can: `Z_BLOCK`, `inflatePrime`, `inflateSetDictionary`.
"""

import ctypes
import ctypes.util
from functools import cache

from pipeline.errors import SourceError

WINDOW = 1 << 15  # bytes of output that the following blocks may refer to
GZIP, RAW = 31, -15  # as `windowBits`: header and checksum are dealt with, or absent
_NO_FLUSH, _BLOCK = 0, 5
_OK, _STREAM_END, _BUFFER_ERROR = 0, 1, -5


class _Fields(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class InflateError(Exception):
    """The stream is damaged; the message is zlib's."""


class Inflate:
    """One inflate state: `give` it input, `take` output."""

    def __init__(self, bits: int) -> None:
        self._zlib = _library()
        self._fields = _Fields()
        self._input = b""
        self.ended = False
        version = self._zlib.zlibVersion()
        code = self._zlib.inflateInit2_(self._at(), bits, version, ctypes.sizeof(_Fields))
        if code != _OK:
            raise MemoryError(f"zlib's inflateInit2 says {code}")

    @classmethod
    def at_block(cls, bits: int, last_byte: int, window: bytes) -> "Inflate":
        """A state at the border of a block: the top `bits` of the byte before belong to it."""
        state = cls(RAW)
        if bits:
            state._zlib.inflatePrime(state._at(), bits, last_byte >> (8 - bits))
        if window:
            state._zlib.inflateSetDictionary(state._at(), window, len(window))
        return state

    @property
    def pending(self) -> int:
        """Bytes of input that are not used yet."""
        return int(self._fields.avail_in)

    def give(self, data: bytes) -> None:
        """More input; all earlier input must be used up."""
        self._input = data
        self._fields.next_in = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        self._fields.avail_in = len(data)

    def take(self, room: bytearray, *, to_block: bool = False) -> int:
        """Number of bytes put into `room`; `to_block` stops at the next border of a block."""
        fields = self._fields
        held = (ctypes.c_char * len(room)).from_buffer(room)
        fields.next_out, fields.avail_out = ctypes.addressof(held), len(room)
        code = self._zlib.inflate(self._at(), _BLOCK if to_block else _NO_FLUSH)
        if code not in (_OK, _STREAM_END, _BUFFER_ERROR):
            raise InflateError((fields.msg or b"no reason given").decode())
        self.ended = code == _STREAM_END
        return len(room) - int(fields.avail_out)

    @property
    def block_bits(self) -> int | None:
        """Bits of the last byte used that belong to the next block; None within a block."""
        kind = self._fields.data_type
        return kind & 7 if kind & 128 and not kind & 64 else None

    def window(self) -> bytes:
        """The last bytes of output, up to WINDOW."""
        room, size = ctypes.create_string_buffer(WINDOW), ctypes.c_uint()
        self._zlib.inflateGetDictionary(self._at(), room, ctypes.byref(size))
        return room.raw[: size.value]

    def close(self) -> None:
        """Free what zlib has allocated."""
        self._zlib.inflateEnd(self._at())

    def _at(self) -> object:
        return ctypes.byref(self._fields)


@cache
def _library() -> ctypes.CDLL:
    for name in ("libz.so.1", ctypes.util.find_library("z")):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None:
            library.zlibVersion.restype = ctypes.c_char_p
            return library
    raise SourceError(
        "reading gzip archives takes zlib: install it (on Debian: apt install zlib1g)"
    )
