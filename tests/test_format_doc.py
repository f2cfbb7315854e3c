"""docs/format.md is enough for a stranger: a reader that uses none of this project's code."""

import hashlib
import json
import struct
from itertools import takewhile
from pathlib import Path
from textwrap import dedent

import numpy as np
import zstandard
from xxhash import xxh3_128

from tests.conftest import ROOT, SUB4


def read_planes(path: Path) -> tuple[list[np.ndarray], list[int]]:
    """Planes and labels of a zstd shard, by the tables in docs/format.md."""
    content = path.read_bytes()
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", content, 0)
    assert (version, fields, page, table) == (2, 2, 2**23, len(content))
    type_id, name = struct.unpack_from("<B16s", content, 24)
    assert (type_id, name.rstrip(b"\0")) == (255, b"image")
    channels, height, width = struct.unpack_from("<BHH", content, 24 + 17)
    assert struct.unpack_from("<B16s", content, 24 + 1041) == (1, b"label".ljust(16, b"\0"))
    planes, labels = [], []
    for i in range(samples):
        pointer, size, label = struct.unpack_from("<QI4xq", content, 2106 + 24 * i)
        raw = zstandard.decompress(content[pointer : pointer + size])
        planes.append(np.frombuffer(raw, np.int8).reshape(channels, height, width))
        labels.append(label)
    return planes, labels


def test_a_stranger_rebuilds_the_images(data: Path, source: Path) -> None:
    from PIL import Image

    directory = data / SUB4
    found = json.loads((directory / "manifest.json").read_text())
    planes, labels = zip(
        *(read_planes(directory / f"val/shard_0{k}.beton") for k in range(4)), strict=True
    )
    assert len({tuple(x) for x in labels}) == 1
    matrix, colour = np.array(found["matrix"]), np.array(found["colour"])
    step = np.array([p["step"] for p in found["planes"]])[:, None, None, None]
    offset = np.array([p["offset"] for p in found["planes"]])[:, :, None, None]
    first = np.stack([p[0] for p in planes])
    values = step * first + offset
    phases = np.einsum("kn,kchw,cd->nhwd", matrix, values, colour)
    image = np.empty((32, 32, 3))
    for n in range(4):
        image[n // 2 :: 2, n % 2 :: 2] = phases[n]
    path = source / "val" / found["classes"][labels[0][0]] / "000.jpg"
    with Image.open(path) as original:
        truth = np.asarray(original.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.sqrt(((image - truth) ** 2).mean()) < 4


def test_a_stranger_checks_the_digests(data: Path) -> None:
    text = (data / SUB4 / "manifest.json").read_text()
    found = json.loads(text)
    for name, entry in found["files"].items():
        content = (data / SUB4 / name).read_bytes()
        pieces = [content[at : at + 2**20] for at in range(0, len(content), 2**20)]
        inner = b"".join(xxh3_128(piece).digest() for piece in pieces)
        assert xxh3_128(inner).hexdigest() == entry["digest"]
    doc = (ROOT / "docs" / "format.md").read_text().partition("In Python:\n\n")[2]
    lines = takewhile(lambda line: line.startswith("    "), doc.splitlines())
    code = dedent("\n".join(lines)).replace("manifest.json", str(data / SUB4 / "manifest.json"))
    assert code.count("assert") == 2  # whole text, last line feed included, and the digest
    exec(code, {"json": json, "hashlib": hashlib})
