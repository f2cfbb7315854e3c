"""More than 8 bits, floats, damaged texts of PNGs, TIFFs: the right pixels, or the true reason."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from pipeline.errors import BadImageError
from pipeline.planes import decode as module
from pipeline.planes.decode import decode
from tests.conftest import ROOT, spectral
from tests.test_decode import coded, photo

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))  # fmt: skip # noqa: E501


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png16(values: NDArray[np.uint16], *, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits; values: (H, W, channels), 1 grey, 2 with alpha, 3 colour, 4 with alpha."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    passes = [values[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [values]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for part in passes for line in part)
    header = struct.pack(">2I5B", width, height, 16, kind, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return SIGNATURE + body


def deep(bits: int, channels: int) -> NDArray[np.uint16]:
    """A photograph of so many bits, none of which is empty; alpha is full."""
    levels = np.asarray(photo()).astype(np.uint16)
    fine = np.random.default_rng(0).integers(0, 1 << (bits - 8), levels.shape, dtype=np.uint16)
    colour = (levels << (bits - 8)) + fine
    alpha = np.full((*levels.shape[:2], 1), (1 << bits) - 1, np.uint16)
    kept = colour[:, :, :1] if channels < 3 else colour
    return np.concatenate([kept, alpha], 2) if channels in (2, 4) else kept


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [12, 16])
def test_of_the_bits_that_are_used_the_upper_eight_count(
    bits: int, channels: int, interlaced: bool
) -> None:
    """Of 12 bits in 16 the upper 8 of 16 would be an image all black."""
    values = deep(bits, channels)
    found = np.asarray(decode(png16(values, interlaced=interlaced), 3, 32))
    colour = values[:, :, : 3 if channels > 2 else 1]
    assert (found == colour >> (bits - 8)).all()


@pytest.mark.parametrize("compression", ["none", "deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_twelve_bits_of_colour_in_a_tiff(order: str, compression: str) -> None:
    values = deep(12, 3)
    height, width, _ = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = pixels if compression == "none" else zlib.compress(pixels)
    method = 1 if compression == "none" else 8
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, method)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 14), (277, 3, 1, 3), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(pixels))]
    start = 14 + len(pixels) + len(pixels) % 2
    data = struct.pack(f"{order}2sHI3H", b"II" if order == "<" else b"MM", 42, start, 16, 16, 16)
    data += pixels + b"\0" * (len(pixels) % 2) + struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        data += struct.pack(f"{order}2HI" + ("2H" if short else "I"), tag, kind, count,
                            *([value, 0] if short else [value]))  # fmt: skip
    data += bytes(4)
    assert (np.asarray(decode(data, 3, 32)) == values >> 4).all()


@pytest.mark.parametrize("step", [256, 257])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dark_image_of_sixteen_bits_stays_dark(step: int, channels: int) -> None:
    """Made from 8 bits, as programs do it: no value is above 4095, and 12 bits are not meant."""
    levels = np.arange(16 * 16 * channels, dtype=np.uint16).reshape(16, 16, channels) % 12
    found = np.asarray(decode(png16(levels * step), 3, 16))
    assert (found == levels).all()
    black = np.zeros((8, 8, channels), np.uint16)
    assert not np.asarray(decode(png16(black), 3, 16)).any()


def test_a_dark_grey_image_is_not_refused() -> None:
    values = np.linspace(0, 3000, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        assert np.asarray(decode(coded(Image.fromarray(values), kind), 1, 16)).max() > 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bits_in_sixteen_are_what_they_are(kind: str) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert (np.asarray(decode(coded(Image.fromarray(values), kind), 1, 16)) == values).all()


def test_a_pnm_says_its_range_itself() -> None:
    values = np.arange(100, 356, dtype=">u2").reshape(16, 16)
    dark = np.asarray(decode(b"P5 16 16 65535\n" + values.tobytes(), 1, 16))
    assert (dark == values >> 8).all()
    twelve = np.asarray(decode(b"P5 16 16 4095\n" + (values * 8).astype(">u2").tobytes(), 1, 16))
    assert np.abs(twelve - values * 8 / 16).max() <= 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.linspace(-1, 1, 256, dtype=np.float32), "float samples from -1 to 1"),
        (np.linspace(0, 4095, 256, dtype=np.float32), "float samples from 0 to 4095"),
        (np.linspace(0, 4, 256, dtype=np.float32), "float samples from 0 to 4,"),
        (np.full(256, np.nan, np.float32), "float samples from nan"),
        (np.full(256, np.inf, np.float32), "float samples from inf"),
        (np.arange(256, dtype=np.int32) - 300, "not 0 to 65535"),
        (np.arange(256, dtype=np.int32) + 70_000, "integer samples from 70000"),
    ],
)
def test_a_range_that_cannot_be_told_is_a_reason(values: np.ndarray, reason: str) -> None:
    """Cut to 8 bits it would be an image all black, or all white."""
    with pytest.raises(BadImageError, match=reason):
        decode(coded(Image.fromarray(values.reshape(16, 16)), "TIFF"), 1, 16)


@pytest.mark.parametrize("top", [1, 255])
def test_floats_are_grey_levels(top: int) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    found = np.asarray(decode(coded(Image.fromarray(values), "TIFF"), 1, 16))
    assert np.abs(found - values * (255 / top)).max() <= 1


# PNG --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt", b"zTXt", b"iCCP", b"pHYs", b"eXIf", b"gAMA"])
@pytest.mark.parametrize("crc", [0, None])
def test_what_a_viewer_passes_over_does_not_matter(kind: bytes, crc: int | None) -> None:
    """Wrong checksums, and contents that are none, before the pixels and behind them."""
    data = coded(photo(), "PNG")
    extra = chunk(kind, b"\xff no such thing", crc)
    for damaged in (data[:33] + extra + data[33:], data[:-12] + extra + data[-12:]):
        assert (np.asarray(decode(damaged, 3, 32)) == np.asarray(photo())).all()


def test_large_texts_and_profiles_do_not_matter() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (20 << 20), zip=True)
    profile = np.random.default_rng(0).integers(0, 256, 3 << 20, dtype=np.uint8).tobytes()
    data = coded(photo(), "PNG", pnginfo=info, icc_profile=profile)
    assert (np.asarray(decode(data, 3, 32)) == np.asarray(photo())).all()


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1"])
def test_transparency_that_goes_with_the_extras_changes_no_pixel(mode: str) -> None:
    image = photo().convert(mode)
    data = coded(image, "PNG", **({} if mode == "LA" else {"transparency": 0}))
    damaged = data[:33] + chunk(b"tEXt", b"x", 0) + data[33:]
    assert (np.asarray(decode(damaged, 3, 32)) == np.asarray(decode(data, 3, 32))).all()


def test_damage_that_matters_has_its_own_reason() -> None:
    data = bytearray(coded(photo(), "PNG"))
    data[29] ^= 1  # checksum of the header
    with pytest.raises(BadImageError, match=r"PNG file, broken PNG file \(.* in b'IHDR'\)"):
        decode(bytes(data), 3, 32)


# reasons and stderr -----------------------------------------------------------------------------


def floats_in_colour() -> bytes:
    """A TIFF of a kind that Pillow knows to be one, and does not read."""
    data = bytearray(coded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"))
    at = data.index(struct.pack("<2HI2H", 258, 3, 1, 32, 0))
    data[at + 8] = 24
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (coded(Image.new("LAB", (8, 8)), "TIFF"), "a colour mode that is not read"),
        (floats_in_colour(), "TIFF file, unknown pixel mode"),
        (coded(photo(), "TIFF")[:-60], "TIFF file|truncated"),
        (b"GIF89a", "GIF file"),
    ],
)
def test_a_reason_is_true_and_the_same_on_every_machine(data: bytes, reason: str) -> None:
    """It is stored, in a file whose digest is compared."""
    with pytest.raises(BadImageError, match=reason) as caught:
        decode(data, 3, 8)
    assert "/" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_the_formats_in_a_reason_do_not_depend_on_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(BadImageError) as one:
        decode(b"no image", 3, 8)
    monkeypatch.setattr(module, "_FORMATS", ("JPEG", "PNG"))
    with pytest.raises(BadImageError) as other:
        decode(b"no image", 3, 8)
    assert str(one.value) == str(other.value)
    assert str(one.value).endswith("(JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF)")
    with pytest.raises(BadImageError, match="AVIF, which the Pillow that is installed"):
        decode(b"\0\0\0\x20ftypavif" + bytes(20), 3, 8)


def test_nothing_of_libtiff_reaches_stderr(tmp_path: Path) -> None:
    """The real command: workers write to the same stderr, below Python."""
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(16):
        photo().save(folder / f"{number}.tif", compression=("tiff_lzw", "jpeg")[number % 2])
        if number > 4:
            data = bytearray((folder / f"{number}.tif").read_bytes())
            for at in rng.integers(8, len(data), 12):
                data[at] ^= 255
            (folder / f"{number}.tif").write_bytes(data)
    done = spectral(
        "prepare", "toy", "--source", tmp_path / "images", "--out", tmp_path / "out",
        "--splits", 4, "--size", 32, "--calib", 0, "--report-bad", "--workers", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot decode" in done.stdout
    foreign = ("TIFF", "tempfile.tif", "LZW", "JPEG", "More samples")
    assert not [line for line in done.stderr.splitlines() if line.startswith(foreign)]


def test_a_reason_does_not_depend_on_what_was_read_before() -> None:
    """Pillow loads its readers as they are needed: in a new process there are five of them."""
    data = coded(photo(), "JPEG")[:900]
    code = (
        "import sys\nfrom pipeline.planes.decode import decode\n"
        "try: decode(sys.stdin.buffer.read(), 3, 32)\nexcept Exception as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, check=True
    )
    assert found.stdout.decode().startswith("cannot decode: JPEG file, it is truncated")
