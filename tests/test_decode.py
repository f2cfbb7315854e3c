"""What is an image is known by content; everything odd becomes RGB or a reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImageError
from pipeline.planes.decode import decode, from_pixels
from pipeline.planes.imaging import packed, pixels, resize
from pipeline.preparation import preparation
from tests.conftest import photograph, spectral


def photo(width: int = 120, height: int = 90) -> Image.Image:
    return photograph(np.random.default_rng(3), width, height)


def coded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_every_mode_becomes_rgb_or_grey() -> None:
    base = photo()
    sixteen = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    for image, kind in [
        (base, "JPEG"), (base.convert("L"), "JPEG"), (base.convert("CMYK"), "JPEG"),
        (base.convert("RGBA"), "PNG"), (base.convert("LA"), "PNG"), (base.convert("P"), "PNG"),
        (base.convert("1"), "PNG"), (sixteen, "PNG"), (sixteen, "TIFF"), (base.convert("P"), "GIF"),
        (base, "WEBP"), (base, "BMP"), (base.convert("L").convert("F"), "TIFF"),
        (base.convert("L").convert("I"), "TIFF"),
    ]:  # fmt: skip
        data = coded(image, kind)
        for channels, mode in ((3, "RGB"), (1, "L")):
            found = decode(data, channels, 32)
            assert (found.mode, found.size) == (mode, base.size), (image.mode, kind)
            error = np.asarray(found.convert("L")).astype(float) - np.asarray(base.convert("L"))
            assert np.abs(error).mean() < (130 if image.mode == "1" else 12), (image.mode, kind)


def endless_dds() -> bytes:
    """A header of 2,097,202×40 px whose reader goes on behind the end of the file."""
    header = struct.pack("<7I", 124, 0x100F, 40, 2_097_202, 150, 0, 0) + bytes(44)
    pixels = struct.pack("<8I", 32, 0x40, 0, 24, 0xFF0000, 0xFF00, 0xFF, 0)
    return b"DDS " + header + pixels + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + bytes(100)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("kind", ["DDS", "EPS", "PCX", "TGA", "ICO", "SGI"])
def test_a_format_that_nobody_trains_on_is_not_opened(kind: str) -> None:
    made = {"DDS": endless_dds(), "EPS": POSTSCRIPT}
    data = made[kind] if kind in made else coded(photo(), kind)
    with pytest.raises(BadImageError, match="not an image format that is read"):
        decode(data, 3, 32)


def test_no_input_starts_another_program_or_hangs(tmp_path: Path) -> None:
    """The real command on a folder with PostScript and an endless DDS, named as photographs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "ppmquant", "convert"):
        (programs / name).write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
        (programs / name).chmod(0o755)
    folder = tmp_path / "images" / "train" / "cats"
    folder.mkdir(parents=True)
    for number in range(6):
        photo().save(folder / f"{number}.jpg")
    (folder / "x.jpg").write_bytes(POSTSCRIPT)
    (folder / "y.jpg").write_bytes(endless_dds())
    done = spectral(
        "prepare", "toy", "--source", tmp_path / "images", "--out", tmp_path / "out",
        "--splits", 4, "--size", 32, "--calib", 0, "--report-bad",
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not an image format that is read") == 2, done.stdout
    assert not (tmp_path / "ran").exists()


def test_of_an_animation_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = coded(first, "GIF", save_all=True, append_images=[second])
    assert np.asarray(decode(data, 3, 8))[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored_and_broken_exif_does_not_matter() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(coded(photo(), "JPEG", exif=exif), 3, 32).size == (120, 90)
    broken = coded(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\xee" * 40)
    assert decode(broken, 3, 32).size == (120, 90)


def _bomb() -> bytes:
    """A PNG of 20000×20000 px in a few hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return len(body).to_bytes(4, "big") + kind + body + crc.to_bytes(4, "big")

    header = (20000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(b"\0" * 1000)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is no image", "not an image"),
        (b"\xff\xd8\xff", "not an image|cannot decode"),
        (coded(photo(), "JPEG")[:900], "cannot decode: .*truncated"),
        (coded(photo(), "PNG")[:900], "cannot decode"),
        (coded(photo(), "WEBP")[:300], "cannot decode|not an image"),
        (_bomb(), "more than 89,478,485 pixels, as decompression bombs have"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(data, 3, 32)


def test_draft_mode_keeps_at_least_twice_the_target() -> None:
    """The rule that decode states; smaller JPEGs are decoded in full."""
    data = coded(photo(1000, 800), "JPEG", quality=95)
    assert decode(data, 3, 300).size == (1000, 800)
    assert decode(data, 3, 100).size == (250, 200)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    drafted, whole = (resize(im, "squash", 96) for im in (decode(data, 3, 96), full))
    assert np.abs(pixels(drafted).astype(int) - pixels(whole)).mean() < 2


@pytest.mark.parametrize(
    ("policy", "size", "shape"),
    [("squash", 48, (48, 48)), ("crop", 48, (48, 48)), ("shortest", 48, (48, 64))],
)
def test_resize_policies(policy: str, size: int, shape: tuple[int, int]) -> None:
    assert resize(photo(120, 90), policy, size).size == shape[::-1]


def test_packed_pixels_are_the_same_without_a_copy() -> None:
    """Of what is decoded, resized, of pixels that Pillow has not allocated, of one part of an
    image, and of one too large for a single piece of its memory.
    """
    sizes = ((90, 70), (1, 1), (33, 2100), (2200, 2000))
    for data in (coded(photo(*size), "PNG") for size in sizes):
        for mode, channels in (("RGB", 3), ("L", 1)):
            image = decode(data, channels, 8)
            lent = from_pixels(image.tobytes(), channels, (image.height, image.width, channels))
            for each in (image, lent, resize(image, "squash", 40), image.crop((1, 1, 5, 4))):
                found = packed(each)
                assert (each.mode, found.shape[2]) == (mode, 4 if channels == 3 else 1)
                assert found.flags.c_contiguous
                assert (found[:, :, :channels] == pixels(each)).all()


def test_packed_pixels_outlive_their_image() -> None:
    image = photo(40, 30)
    wanted, found = pixels(image).copy(), packed(image)
    del image
    _ = [photo(40, 30) for _ in range(20)]
    assert (found[:, :, :3] == wanted).all()


def test_crop_takes_the_middle() -> None:
    image = Image.new("L", (90, 30), 0)
    image.paste(255, (30, 0, 60, 30))
    assert (pixels(resize(image, "crop", 30)) == 255).all()
    assert preparation("any", 4, size=30, resize="crop").folder().endswith("crop")
