"""Every kernel against its slow, obvious twin: SciPy's DCT and NumPy slicing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct, dctn

from pipeline import transforms
from pipeline.kernels.analyse import analyse
from pipeline.kernels.gather import gather_row
from pipeline.kernels.moments import add_moments
from pipeline.kernels.project import fold, weigh
from pipeline.kernels.quantise import quantise_row
from pipeline.options import preparation
from pipeline.splitter import Splitter

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
@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
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
            assert np.abs(planes - np.clip(exact, -127, 127)).max() <= 0.5 + 1e-3
            assert planes.min() >= -127
            certain = (np.abs(exact) > 127.51).sum(axis=(1, 2, 3))
            possible = (np.abs(exact) > 127.49).sum(axis=(1, 2, 3))
            assert (certain <= clipped).all()
            assert (clipped <= possible).all()


@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
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
@pytest.mark.parametrize("transform", transforms.TRANSFORMS)
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
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_weigh_and_fold_are_the_matrix_product(n: int, j: int, seed: int) -> None:
    """The folded product of (anti)symmetric weights is the plain one, for odd and even n."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1020, 1021, (n, j)).astype(np.int32)
    half = (n + 1) // 2
    even, odd = np.empty((half, j), np.int32), np.empty((half, j), np.int32)
    fold(values, even, odd)
    out = np.empty(j, np.int32)
    weights = rng.integers(-(2**16), 2**16, n).astype(np.int32)
    weigh(weights, values, out)
    assert (out == weights @ values.astype(np.int64)).all()
    for sign, folded in ((1, even), (-1, odd)):
        symmetric = (weights + sign * weights[::-1]) // 2
        if n % 2 and sign > 0:
            symmetric[n // 2] = weights[n // 2]
        symmetric = symmetric.copy()
        symmetric[n - n // 2 :] = sign * symmetric[: n // 2][::-1]
        if n % 2 and sign < 0:
            symmetric[n // 2] = 0
        weigh(symmetric[:half].astype(np.int32), folded, out)
        assert (out == symmetric @ values.astype(np.int64)).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block", [False, True])
def test_gather_row_is_slicing(block: bool, channels: int) -> None:
    p, w = 3, 5
    image = image_of("noise", p * w, channels)
    out = np.empty((9, channels, w), np.int32)
    integers = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) if channels == 3 else np.eye(1)
    centre = np.array([765, 0, 0]) if channels == 3 else np.array([255])
    for y in range(w):
        gather_row(image, y, p, block, out)
        phases = slow_phases(image, p, "block" if block else "phase")[:, y].astype(int)
        assert (out == np.moveaxis(2 * phases @ integers.T - centre, 2, 1)).all()


def test_quantise_rounds_symmetrically_and_counts_what_clips() -> None:
    values = np.arange(-300, 301, dtype=np.int32)
    out = np.empty(len(values), np.int8)
    clipped = quantise_row(values, 0.5, out)
    assert (out == np.clip(np.rint(values / 2), -127, 127)).all()
    assert (out == -out[::-1]).all()
    assert clipped == (np.abs(np.rint(values / 2)) > 127).sum()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_moments_are_exact_sums(dtype: type) -> None:
    info = np.iinfo(dtype)
    planes = np.random.default_rng(0).integers(info.min, info.max + 1, (4, 3, 6, 5)).astype(dtype)
    first, second = np.zeros((4, 3), np.int64), np.zeros((4, 3, 3), np.int64)
    add_moments(planes, first, second)
    wide = planes.astype(np.int64)
    assert (first == wide.sum(axis=(2, 3))).all()
    assert (second == np.einsum("kahw,kbhw->kab", wide, wide)).all()


@pytest.mark.parametrize("p", [2, 4, 6, 8, 10])
def test_a_flat_image_never_clips(p: int) -> None:
    """Plane 0 gets a larger step where the table's would not span black to white."""
    for transform in transforms.TRANSFORMS:
        splitter = Splitter(preparation("any", p * p, size=p, transform=transform))
        for kind in ("black", "white"):
            assert not split(splitter, image_of(kind, p, 3))[1].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 5, 8])
def test_the_fused_kernel_with_one_phase_rotates_and_quantises(channels: int, side: int) -> None:
    """p = 1: no split is left, only the colour rotation and the quantiser."""
    for kind in KINDS:
        image = image_of(kind, side, channels)
        planes, clipped = np.empty((1, channels, side, side), np.int8), np.zeros(1, np.int64)
        norm = np.sqrt([3, 2, 6])[:channels] if channels == 3 else np.ones(1)
        scale = (1 / (2 * 2**16 * 2.0 * norm))[None].astype(np.float32)
        one = np.array([[2**16]], np.int32)
        analyse(image, one, np.array([1], np.int8), scale, False, planes, clipped)
        grey = slow_coefficients(np.full_like(image, 127), 1, "none", "phase") * (127.5 / 127)
        exact = (slow_coefficients(image, 1, "none", "phase") - grey) / 2.0
        assert np.abs(planes - np.clip(exact, -127, 127)).max() <= 0.5 + 1e-3
