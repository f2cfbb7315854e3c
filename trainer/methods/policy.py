"""RandAugment and TrivialAugment for batches of whole images, on the device.

torchvision's take one image at a time, in about a millisecond of Python each. These do to each
image of a batch what torchvision's tensor kernels do to it, for the same operation and magnitude:
images of one operation go through it together, with a parameter each. All geometric operations are
one affine map. Colours, rotations and shears of an image are not those of a plane: for whole images
alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer.process.device import sent
from trainer.recipes.recipe import Augment

KINDS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_IDENTITY, _SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(6)
_POSTERIZE, _SOLARIZE = KINDS.index("Posterize"), KINDS.index("Solarize")
_SIGNED = 9  # kinds 1 to 9 go either way
_BINS = 31  # of a magnitude
_GREY = 128  # of what lies outside of the image


@dataclass(frozen=True)
class Operations:
    """What happens to each image of S batches, one operation after the other: kinds (S, B, n), and
    parameters (S, B, n, 6) float32: the affine map (of centred pixels) from the new image to the
    old one, or in the first places a factor and 1 less it, a mask or a threshold.
    """

    kinds: NDArray[np.int64]
    parameters: NDArray[np.float32]

    def part(self, share: slice) -> "Operations":
        """For the images of a share."""
        return Operations(self.kinds[:, share], np.ascontiguousarray(self.parameters[:, share]))


def draw_operations(
    augment: Augment, size: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator
) -> Operations | None:
    """As torchvision's transforms of these names draw them; shape: (S, B)."""
    if augment.policy == "none":
        return None
    trivial = augment.policy == "trivialaugment"
    count = 1 if trivial else augment.policy_operations
    kinds = rng.integers(0, len(KINDS), (*shape, count))
    fixed = np.full(kinds.shape, augment.policy_magnitude)
    bins = rng.integers(0, _BINS, kinds.shape) if trivial else fixed
    magnitudes = magnitude_table(trivial, size)[kinds, bins]
    negative = (rng.random(kinds.shape) < 0.5) & (kinds >= _SHEAR_X) & (kinds <= _SIGNED)
    return Operations(
        kinds, parameters_of(kinds, np.where(negative, -magnitudes, magnitudes), size)
    )


def magnitude_table(trivial: bool, size: tuple[int, int]) -> NDArray[np.float64]:
    """(kinds, bins): torchvision's, rounded to float32 as there."""
    height, width = size
    far = (32.0, 32.0) if trivial else (150 / 331 * width, 150 / 331 * height)
    shear, turn, colour, bits = (0.99, 135.0, 0.99, 6) if trivial else (0.3, 30.0, 0.9, 4)
    tops = [0.0, shear, shear, *far, turn, colour, colour, colour, colour]
    posterize = np.rint(8 - np.arange(_BINS) / ((_BINS - 1) / bits))
    rows = [*(_spaced(0.0, top) for top in tops), posterize, _spaced(1.0, 0.0)]
    none = np.zeros(_BINS)
    return np.array([*rows, none, none], np.float64)


def _spaced(first: float, last: float) -> NDArray[np.float32]:
    """As torch.linspace rounds: a step of float32, counted from the nearer end, rounded once."""
    start, end, places = float(np.float32(first)), float(np.float32(last)), np.arange(_BINS)
    step = float((np.float32(last) - np.float32(first)) / np.float32(_BINS - 1))
    near = np.where(places < _BINS // 2, start + step * places, end - step * places[::-1])
    return near.astype(np.float32)


def parameters_of(
    kinds: NDArray[np.int64], magnitudes: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float32]:
    """(…, 6) of kinds and magnitudes (…)."""
    height, width = size
    found = np.zeros((*kinds.shape, 6))
    found[..., 0], found[..., 1] = 1 + magnitudes, -magnitudes  # shares of image and other
    found[kinds == _POSTERIZE, 0] = 256 - 2.0 ** (8 - magnitudes[kinds == _POSTERIZE])
    found[kinds == _SOLARIZE, 0] = 255 * magnitudes[kinds == _SOLARIZE]
    affine = (kinds >= _SHEAR_X) & (kinds <= _ROTATE)
    found[affine] = (1, 0, 0, 0, 1, 0)
    for kind, places in (
        (_SHEAR_X, {1: 1.0, 2: height / 2}),
        (_SHEAR_Y, {3: 1.0, 5: width / 2}),
    ):  # about the upper left corner
        for place, factor in places.items():
            found[kinds == kind, place] = factor * magnitudes[kinds == kind]
    found[kinds == _TRANSLATE_X, 2] = -np.trunc(magnitudes[kinds == _TRANSLATE_X])
    found[kinds == _TRANSLATE_Y, 5] = -np.trunc(magnitudes[kinds == _TRANSLATE_Y])
    turns = -np.radians(magnitudes[kinds == _ROTATE])
    for place, value in ((0, np.cos), (1, np.sin), (4, np.cos)):
        found[kinds == _ROTATE, place] = value(turns)
    found[kinds == _ROTATE, 3] = -np.sin(turns)
    return found.astype(np.float32)


class Policy:
    """The operations of a block of steps, with what they need on the device."""

    def __init__(self, operations: Operations, device: torch.device) -> None:
        # images of one operation lie together in `order`; where each begins, the host knows
        order = np.argsort(operations.kinds, axis=1, kind="stable")
        ordered = np.take_along_axis(operations.kinds, order, axis=1)
        self._bounds = [
            [np.searchsorted(slot, np.arange(len(KINDS) + 1)).tolist() for slot in batch.T]
            for batch in ordered
        ]
        self._order = sent(order, device)
        self._parameters = sent(operations.parameters, device)

    def apply(self, images: Tensor, at: int) -> Tensor:
        """images: (B, C, h, w) uint8, the batch of step `at` of the block."""
        for slot, bounds in enumerate(self._bounds[at]):
            order, parameters = self._order[at, :, slot], self._parameters[at, :, slot]
            changed = images.clone()
            for function, first, last in _FUNCTIONS:
                start, stop = bounds[first], bounds[last + 1]
                if stop > start:
                    part = order[start:stop]
                    values = function(images[part], parameters[part])
                    changed.index_copy_(0, part, values)
            images = changed
        return images


def affine(images: Tensor, maps: Tensor) -> Tensor:
    """The nearest pixel of where maps (n, 6) point to, grey outside. images: (n, C, h, w) uint8."""
    channels, height, width = images.shape[1:]
    x = torch.arange(width, device=images.device) - (width - 1) * 0.5
    y = (torch.arange(height, device=images.device) - (height - 1) * 0.5)[:, None]
    # by way of -1…1, as torchvision goes: what is half-way between two pixels rounds as there
    half = torch.full((6, 1, 1), 0.5 * width, device=images.device)
    half[3:] = 0.5 * height
    a, b, c, d, e, f = (maps[:, :, None, None] / half).unbind(dim=1)
    column = (((x * a + y * b + c + 1) * width - 1) / 2).round()
    row = (((x * d + y * e + f + 1) * height - 1) / 2).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = torch.where(inside, row * width + column, 0).long().flatten(1)
    place = place[:, None].expand(-1, channels, -1)
    found = images.flatten(2).gather(2, place).view(images.shape)
    return torch.where(inside[:, None], found, _GREY)


def brightness(images: Tensor, parameters: Tensor) -> Tensor:
    """Times a factor."""
    return _bytes(images * _first(parameters))


def colour(images: Tensor, parameters: Tensor) -> Tensor:
    """Away from grey, or to it. An image of one channel stays."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), parameters)


def contrast(images: Tensor, parameters: Tensor) -> Tensor:
    """Away from the mean grey level, or to it."""
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean, parameters)


def sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """Away from a blurred image, or to it; the border stays."""
    height, width = images.shape[2:]
    if height <= 2 or width <= 2:
        return images
    pixels = images.float()
    # (sum of the 3×3 neighbours + 4 × the pixel) / 13, as a box is cheaper than a convolution
    box = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1)
    inner = pixels[..., 1:-1, 1:-1]
    blurred = ((box + 4 * inner) / 13).round()
    inner.add_((blurred - inner) * parameters[:, 1:2, None, None])
    return _bytes(pixels)


def posterize(images: Tensor, parameters: Tensor) -> Tensor:
    """Only the highest bits."""
    return images & _first(parameters).to(torch.uint8)


def solarize(images: Tensor, parameters: Tensor) -> Tensor:
    """Inverted from a threshold on."""
    return torch.where(images >= _first(parameters), 255 - images, images)


def autocontrast(images: Tensor, parameters: Tensor) -> Tensor:
    """Each channel stretched to 0…255."""
    pixels = images.float()
    low, high = pixels.amin(dim=(2, 3), keepdim=True), pixels.amax(dim=(2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _bytes((pixels - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor, parameters: Tensor) -> Tensor:
    """Each channel's histogram made flat."""
    from torchvision.transforms.v2.functional import equalize_image

    return cast(Tensor, equalize_image(images))


_FUNCTIONS: tuple[tuple[Callable[[Tensor, Tensor], Tensor], int, int], ...] = (
    (affine, _SHEAR_X, _ROTATE),
    *(
        (function, KINDS.index(name), KINDS.index(name))
        for name, function in (
            ("Brightness", brightness), ("Color", colour), ("Contrast", contrast),
            ("Sharpness", sharpness), ("Posterize", posterize), ("Solarize", solarize),
            ("AutoContrast", autocontrast), ("Equalize", equalize),
        )
    ),
)  # fmt: skip


def _first(parameters: Tensor) -> Tensor:
    """(n, 1, 1, 1)."""
    return parameters[:, :1, None, None]


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(n, 1, h, w) whole numbers as float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(dim=1)
    return (red * 0.2989).add(green, alpha=0.587).add(blue, alpha=0.114).floor()[:, None]


def _blend(images: Tensor, other: Tensor, parameters: Tensor) -> Tensor:
    return _bytes(images * _first(parameters) + other * parameters[:, 1:2, None, None])
