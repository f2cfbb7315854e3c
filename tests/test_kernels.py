"""Every kernel against its slow, obvious twin: SciPy's DCT and NumPy slicing."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct, dctn

from pipeline import transforms
from pipeline.choices import TRANSFORMS
from pipeline.format.codec import Payloads
from pipeline.format.zstd import BLOCK, CompressionContext, compress_planes, room_for
from pipeline.planes.kernels.analyse import (
    FRACTION_BITS,
    PART,
    ROUNDING,
    TILE,
    add_radix3,
    butterflies,
    quantise_row,
    weigh,
)
from pipeline.planes.kernels.gather import gather
from pipeline.planes.kernels.lanes import WIDTH
from pipeline.planes.kernels.moments import add_moments
from pipeline.planes.splitter import Splitter, fixed_weights, tiles
from pipeline.preparation import preparation
from tests.conftest import ROOT

RGB_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
KINDS = ("noise", "black", "white", "checkers", "red", "ramp")


def image_of(kind: str, size: int, channels: int, seed: int = 0) -> np.ndarray:
    """Test images, among them those that saturate every quantiser."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, channels), np.uint8)
    if kind == "noise":
        image[:] = rng.integers(0, 256, image.shape)
    elif kind == "white":
        image[:] = 255
    elif kind == "checkers":
        image[np.indices((size, size)).sum(0) % 2 == 1] = 255
    elif kind == "red":
        image[:, :, 0] = 255
    elif kind == "ramp":
        image[:] = np.linspace(0, 255, size).astype(np.uint8)[None, :, None]
    return image


def slow_phases(image: np.ndarray, p: int, layout: str) -> np.ndarray:
    """(p², h, w, channels) by slicing, as the method is written down."""
    h = image.shape[0] // p
    if layout == "phase":
        return np.stack([image[r::p, c::p] for r in range(p) for c in range(p)])
    return np.stack(
        [image[r * h : r * h + h, c * h : c * h + h] for r in range(p) for c in range(p)]
    )


def slow_coefficients(image: np.ndarray, p: int, transform: str, layout: str) -> np.ndarray:
    """(p², channels, h, w): SciPy's transform across phases, then the colour rotation."""
    phases = slow_phases(image, p, layout).astype(np.float64)
    _, h, w, channels = phases.shape
    if transform == "dct":
        phases = dct(phases, axis=0, norm="ortho")
    elif transform == "dct2":
        phases = dctn(phases.reshape(p, p, h, w, channels), axes=(0, 1), norm="ortho").reshape(
            phases.shape
        )
    axes = RGB_AXES if channels == 3 else np.eye(1)
    return np.moveaxis(phases @ axes.T, 3, 1)


def splitter_for(p: int, size: int, transform: str, layout: str, channels: int = 3) -> Splitter:
    prep = preparation(
        "any", p * p, size=size, channels=channels, transform=transform, layout=layout
    )
    return Splitter(prep)


def split(splitter: Splitter, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    planes, clipped = splitter.empty(), np.zeros(splitter.prep.splits, np.int64)
    splitter.split(image, planes, clipped)
    return planes, clipped


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [2, 3, 4, 6, 8])
def test_planes_equal_the_slow_twin(p: int, transform: str, layout: str, channels: int) -> None:
    """Quantised planes are the rounded coefficients, for odd plane sizes and saturating input."""
    for side in (1, 5, 7):
        for kind in KINDS:
            prep = preparation(
                "any", p * p, size=p * side, channels=channels, transform=transform, layout=layout
            )
            splitter = Splitter(prep)
            image = image_of(kind, p * side, channels)
            planes, clipped = split(splitter, image)
            slow = slow_coefficients(image, p, transform, layout)
            offset = slow_coefficients(np.full_like(image, 127), p, transform, layout) * (
                127.5 / 127
            )
            exact = (slow - offset) / splitter.steps[:, None, None, None]
            assert np.abs(planes - np.clip(exact, -127, 127)).max() <= 1 - ROUNDING + 1e-3
            assert planes.min() >= -127
            end = 128 - ROUNDING
            certain = (np.abs(exact) > end + 0.01).sum(axis=(1, 2, 3))
            possible = (np.abs(exact) > end - 0.01).sum(axis=(1, 2, 3))
            assert (certain <= clipped).all()
            assert (clipped <= possible).all()


@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [1, 2, 4, 6, 8])
def test_rebuild_inverts_the_split(p: int, transform: str, layout: str) -> None:
    """Unquantised, the inverse is exact; quantised, the error is at most what rounding adds."""
    rng = np.random.default_rng(p)
    image = rng.integers(0, 256, (p * 5, p * 5, 3), dtype=np.uint8)
    slow = slow_coefficients(image, p, transform, layout)
    matrix, colour = transforms.matrix(p, transform), transforms.colour_matrix(3)
    back = np.einsum("kn,kchw,cd->nhwd", matrix, slow, colour)
    np.testing.assert_allclose(back, slow_phases(image, p, layout), atol=1e-9)
    if p > 1:
        splitter = Splitter(
            preparation("any", p * p, size=p * 5, transform=transform, layout=layout)
        )
        np.testing.assert_allclose(splitter.coefficients(image), slow, atol=2e-3)
        planes, clipped = split(splitter, image)
        if not clipped.any():
            error = splitter.rebuild(planes).astype(float) - image
            assert np.sqrt((error**2).mean()) < splitter.steps.max() / np.sqrt(12) * 1.15 + 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_flips_are_exact_where_promised(p: int, transform: str, layout: str, channels: int) -> None:
    """After quantisation, bit for bit; and where no sign is promised, none would do."""
    side = p * 7
    splitter = Splitter(
        preparation("any", p * p, size=side, channels=channels, transform=transform, layout=layout)
    )
    image = image_of("noise", side, channels, seed=p)
    flips = {"horizontal": np.s_[:, ::-1], "vertical": np.s_[::-1], "rotate180": np.s_[::-1, ::-1]}
    planes = split(splitter, image)[0]
    for name, index in flips.items():
        flipped = split(splitter, np.ascontiguousarray(image[index]))[0]
        for k in range(p * p):
            mirrored = planes[k][(slice(None), *(index if isinstance(index, tuple) else (index,)))]
            sign = transforms.flip_sign(p, transform, k, name)
            same = [s for s in (1, -1) if (flipped[k] == s * mirrored).all()]
            assert same == ([sign] if sign else [])


@pytest.mark.parametrize("p", [2, 6])
def test_a_shift_by_p_pixels_is_a_shift_of_every_plane_by_one(p: int) -> None:
    splitter = Splitter(preparation("any", p * p, size=p * 8))
    image = image_of("noise", p * 8, 3)
    moved = split(splitter, np.roll(image, p, axis=1))[0]
    assert (moved == np.roll(split(splitter, image)[0], 1, axis=3)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(0, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_weigh_is_the_matrix_product(n: int, m: int, j: int, seed: int) -> None:
    """Also of the largest weights and values; nothing is written but the sums that are asked for,
    and those that fill a register.
    """
    rng = np.random.default_rng(seed)
    padded = -(-j // WIDTH) * WIDTH + WIDTH
    values = rng.choice([-12240, -1, 0, 7, 12240], (n, padded)).astype(np.int16)
    rows = rng.integers(0, n, (2, m))
    weights = rng.choice([-(2**15) + 1, -3, 0, 2**15 - 1], (TILE, 2 * m + 2)).astype(np.int16)
    start = WIDTH * int(rng.integers(2))
    out = np.full((TILE, padded), 9, np.int32)
    weigh(weights, rows[0], rows[1], values, start, min(start + j, padded), out)
    exact = weights[:, : 2 * m].astype(np.int64) @ values[rows.T.reshape(-1)].astype(np.int64)
    made = -(-(min(start + j, padded) - start) // WIDTH) * WIDTH
    exact = exact[:, start : start + made].astype(np.int32)  # as large ones as no transform has
    assert (out[:, :made] == exact).all()
    assert (out[:, made:] == 9).all()


def exact_planes(splitter: Splitter, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `split` has to give, bit for bit: sums of fixed weights and of whole numbers in 64 bits,
    rounded once, to float32.
    """
    prep = splitter.prep
    integers = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) if prep.channels == 3 else np.eye(1)
    centre = np.array([765, 0, 0]) if prep.channels == 3 else np.array([255])
    phases = slow_phases(image, prep.p, prep.layout).astype(np.int64)
    values = list(np.moveaxis(2 * phases @ integers.T.astype(np.int64) - centre, 3, 1))
    pairs = transforms.butterflies(prep.p, prep.transform)
    triples = transforms.radix3(prep.p, prep.transform)
    for a, b in pairs:
        values[a], values[b] = values[a] + values[b], values[a] - values[b]
    values += [values[a] + sign * (values[b] + values[c]) for a, b, c, sign in triples]
    weights = fixed_weights(splitter.matrix, pairs, triples).astype(np.int64)
    sums = np.tensordot(weights, np.stack(values), 1)
    norm = transforms.COLOUR_NORM if prep.channels == 3 else np.ones(1)
    scale = (1 / (2 * 2.0**FRACTION_BITS * np.outer(splitter.steps, norm))).astype(np.float32)
    scaled = sums.astype(np.float32) * scale[:, :, None, None]
    whole = np.trunc(scaled + np.copysign(ROUNDING, scaled)).astype(np.int64)
    return whole.clip(-127, 127), (np.abs(whole) > 127).sum(axis=(1, 2, 3))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("p", "side"), [(2, 33), (3, 5), (4, 4), (5, 1), (6, 7), (6, 16), (12, 3)])
def test_planes_are_those_of_exact_sums(
    p: int, side: int, transform: str, layout: str, channels: int
) -> None:
    """Bit for bit, for weights of 17 bits too; a plane of 33×33 px is worked on in two parts."""
    splitter = splitter_for(p, p * side, transform, layout, channels)
    assert 32 * 32 <= PART < 33 * 33
    for kind in KINDS:
        image = image_of(kind, p * side, channels)
        planes, clipped = split(splitter, image)
        wanted, outside = exact_planes(splitter, image)
        assert (planes == wanted).all()
        assert (clipped == outside).all()


ON_A_PLAIN_MACHINE = """
import sys
from pipeline.planes.kernels.analyse import weigh
from tests.test_kernels import image_of, split, splitter_for
planes, _ = split(splitter_for(6, 42, "dct", "phase"), image_of("noise", 42, 3))
assert not any("vpmaddwd" in code for code in weigh.inspect_asm().values())
sys.stdout.buffer.write(planes)
"""


def test_planes_are_the_same_on_a_machine_without_avx2() -> None:
    """Where the instruction is missing, the sums are written as multiplications and additions."""
    plain = os.environ | {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", ON_A_PLAIN_MACHINE]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    planes, _ = split(splitter_for(6, 42, "dct", "phase"), image_of("noise", 42, 3))
    assert done.stdout == planes.tobytes()


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 8, 12])
def test_folded_values_times_fixed_weights_are_the_transform(p: int, transform: str) -> None:
    """Within the rounding of the weights; values at the ends of their range do not wrap."""
    matrix, pairs = transforms.matrix(p, transform), transforms.butterflies(p, transform)
    triples = transforms.radix3(p, transform)
    weights = fixed_weights(matrix, pairs, triples).astype(np.int64)
    values = np.random.default_rng(p).choice([-1020, 1020], (p * p, 30)).astype(np.int16)
    folded = np.vstack([values, np.zeros((len(triples), 30), np.int16)])
    butterflies(folded, pairs)
    add_radix3(folded, triples)
    sums = weights @ folded
    assert np.abs(sums).max() < 2**31
    assert np.abs(sums / 2.0**FRACTION_BITS - matrix @ values).max() < p * p * 1020 / 2**16


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 8, 12])
def test_tiles_hold_all_weights(p: int, transform: str) -> None:
    """Each plane once; weights that an int16 does not hold in parts."""
    described = transforms.butterflies(p, transform), transforms.radix3(p, transform)
    matrix = transforms.matrix(p, transform)
    order, weights, rows, lengths = tiles(matrix, *described)
    assert sorted(order) == list(range(p * p))
    fixed = fixed_weights(matrix, *described)
    found = np.zeros((len(lengths) * TILE, fixed.shape[1]), np.int64)
    for i, length in enumerate(lengths):
        parts = weights[i, :, : 2 * length].T.reshape(-1, 2, TILE)
        for first, second, pair in zip(*rows[i, :, :length], parts, strict=True):
            found[i * TILE : (i + 1) * TILE, first] += pair[0]
            found[i * TILE : (i + 1) * TILE, second] += pair[1]
    assert (found[: p * p] == fixed[order]).all()
    assert not found[p * p :].any()


@pytest.mark.parametrize(
    ("p", "transform", "few", "pairs"),
    [(6, "dct", 374, 65), (12, "dct", 6032, 1006), (6, "dct2", 289, 54), (6, "none", 36, 60)],
)
def test_few_weights_are_left(p: int, transform: str, few: int, pairs: int) -> None:
    """Of p⁴: 1,296 and, for p of 12, 20,736; and how many times three pairs are added."""
    described = transforms.butterflies(p, transform), transforms.radix3(p, transform)
    matrix = transforms.matrix(p, transform)
    assert np.count_nonzero(fixed_weights(matrix, *described)) == few
    assert tiles(matrix, *described)[3].sum() == pairs


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [False, True])
def test_gather_is_slicing(block: bool, channels: int) -> None:
    p, w = 3, 5
    image = image_of("noise", p * w, channels)
    kind = np.uint32 if channels == 3 else np.int8
    packed = np.dstack([image, image[:, :, :1]]) if channels == 3 else image
    out, phases = np.full((channels, 10, w * w + 2), 9, np.int16), np.empty((p, w * w), kind)
    integers = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) if channels == 3 else np.eye(1)
    centre = np.array([765, 0, 0]) if channels == 3 else np.array([255])
    gather(packed.view(kind)[:, :, 0], tuple(range(p)), block, phases, out)
    found = slow_phases(image, p, "block" if block else "phase").astype(int)
    slow = np.moveaxis(2 * found @ integers.T - centre, 3, 0)
    assert (out[:, :9, : w * w] == slow.reshape(channels, 9, -1)).all()
    assert (out[:, 9] == 9).all()
    assert (out[:, :, w * w :] == 9).all()


def test_quantise_rounds_symmetrically_and_counts_what_clips() -> None:
    values = np.arange(-300, 301, dtype=np.int32)
    out = np.empty(len(values), np.int8)
    clipped = quantise_row(values, 0.5, out)
    rounded = np.sign(values) * np.floor(np.abs(values) / 2 + ROUNDING)
    assert (out == np.clip(rounded, -127, 127)).all()
    assert (out == -out[::-1]).all()
    assert clipped == (np.abs(rounded) > 127).sum()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_moments_are_exact_sums(dtype: type) -> None:
    info = np.iinfo(dtype)
    planes = np.random.default_rng(0).integers(info.min, info.max + 1, (4, 3, 40_000)).astype(dtype)
    first, second = np.zeros((4, 3), np.int64), np.zeros((4, 3, 3), np.int64)
    add_moments(planes, first, second)
    wide = planes.astype(np.int64)
    assert (first == wide.sum(axis=2)).all()
    assert (second == np.einsum("kaj,kbj->kab", wide, wide)).all()


@pytest.mark.parametrize("p", [2, 4, 6, 8, 10])
def test_a_flat_image_never_clips(p: int) -> None:
    """Plane 0 gets a larger step where the table's would not span black to white."""
    for transform in TRANSFORMS:
        splitter = Splitter(preparation("any", p * p, size=p, transform=transform))
        for kind in ("black", "white"):
            assert not split(splitter, image_of(kind, p, 3))[1].any()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("length", [1, 12, 75, 9408, BLOCK - 3, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 1.0])
def test_frames_hold_the_planes(length: int, density: float, search: bool) -> None:
    """Sparse planes, full ones and empty ones, of odd sizes and of more than one block."""
    rng = np.random.default_rng(length)
    planes = rng.integers(-127, 128, (3, length)).astype(np.int8)
    planes *= rng.random(planes.shape) < density
    context = CompressionContext()
    out, sizes = np.zeros((3, 7 + room_for(length)), np.uint8), np.empty(3, np.uint32)
    starts = np.array([0, 3, 7])
    assert compress_planes(context.address, search, planes, out, starts, sizes)
    for plane, row, start, size in zip(planes, out, starts, sizes, strict=True):
        assert not row[:start].any()
        frame = row[start : start + size].tobytes()
        parameters = zstandard.get_frame_parameters(frame)
        assert (parameters.content_size, parameters.has_checksum) == (length, True)
        assert zstandard.ZstdDecompressor().decompress(frame) == plane.tobytes()
    for little in (0, 1, 17, out.shape[1] - 1):
        assert not compress_planes(
            context.address, search, planes, np.empty((3, little), np.uint8), starts, sizes
        )


@pytest.mark.parametrize("search", [False, True])
def test_frames_do_not_depend_on_what_was_compressed_before(search: bool) -> None:
    rng = np.random.default_rng(0)
    planes = rng.integers(-2, 3, (5, 3000)).astype(np.int8)
    context, frames = CompressionContext(), []
    for order in (slice(None), slice(None, None, -1)):
        out, sizes = np.empty((5, 10_000), np.uint8), np.empty(5, np.uint32)
        mixed, starts = np.ascontiguousarray(planes[order]), np.zeros(5, np.int64)
        compress_planes(context.address, search, mixed, out, starts, sizes)
        pieces = [row[:size].tobytes() for row, size in zip(out, sizes, strict=True)]
        frames.append(pieces[order])
    assert frames[0] == frames[1]


@pytest.mark.parametrize("room", [0, 1000, 5000])
def test_payloads_lie_plane_by_plane_and_leave_memory_that_is_too_small(room: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (3, 4, 400), dtype=np.uint8)
    payloads, memory = Payloads(4), np.zeros(room, np.uint8)
    for _ in range(2):
        payloads.start(memory)
        for sample in samples:
            payloads.append(sample)
            assert [payloads.last(k) for k in range(4)] == [row.tobytes() for row in sample]
        assert (payloads.sizes() == 400).all()
        assert (payloads.ends == 1200).all()
        assert (payloads.rows[:, :1200] == np.hstack(list(samples))).all()
        assert payloads.in_room == (room == 5000) == bool(memory.any())


def test_no_kernel_takes_the_type_that_ffcv_alters() -> None:
    """`ffcv.memory_managers.os_cache` sets `mutable` of numba's one object for (n,) uint8."""
    seen = 0
    for channels in (1, 3):
        splitter = splitter_for(2, 8, "dct", "phase", channels)
        split(splitter, image_of("noise", 8, channels))
    for module in [m for name, m in sys.modules.items() if name.startswith("pipeline.")]:
        for kernel in [k for k in vars(module).values() if hasattr(k, "overloads")]:
            for signature in kernel.overloads:
                seen += 1
                arrays = [kind for kind in signature if isinstance(kind, numba.types.Array)]
                refused = [
                    a for a in arrays if (a.dtype, a.ndim, a.layout) == (numba.uint8, 1, "C")
                ]
                assert not refused, kernel
    assert seen > 8
