"""The split as a torch module: the very values that the kernels give."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.planes import imaging
from pipeline.planes.imaging import image_to_values, load
from pipeline.preparation import Preparation, preparation
from tests.conftest import photograph
from trainer.export.split import Split, image_side


def images_and_planes(prep: Preparation, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs as JPEG, the last image noise of full contrast; and what prepare stores."""
    rng = np.random.default_rng(3)
    pixels: list[NDArray[np.uint8]] = []
    planes: list[NDArray[np.int8]] = []
    for number in range(count - 1):
        file = io.BytesIO()
        photograph(rng, 70 + 9 * number, 64).save(file, "JPEG", quality=90)
        whole = imaging.pixels(load(file.getvalue(), prep)[0])
        side = image_side(prep)
        top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
        pixels.append(whole[top : top + side, left : left + side])
        planes.append(image_to_values(file.getvalue(), prep))
    if prep.resize != "shortest":
        noise = rng.choice(np.array([0, 255], np.uint8), (prep.size, prep.size, prep.channels))
        pixels.append(noise)
        planes.append(image_to_values(noise.tobytes(), prep, noise.shape))
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(planes))


@pytest.mark.parametrize("layout", ["phase", "block"])
@pytest.mark.parametrize("transform", ["dct", "dct2", "none"])
@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_the_split_in_torch_is_that_of_the_kernels(p: int, transform: str, layout: str) -> None:
    """Grey and colour, steps from fine, where values are clipped, to coarse; any batch size."""
    for channels in (1, 3):
        for step in (None, 0.5, 40):
            prep = preparation("x", p * p, size=12 * p, channels=channels, transform=transform,
                               layout=layout, step=step)  # fmt: skip
            images, planes = images_and_planes(prep, 5)
            assert (planes.abs() == 127).any() or step != 0.5  # is clipped
            split = Split(prep)
            found = split(images)
            assert found.shape == planes.shape
            assert found.equal(planes.float()), (channels, step)
            assert torch.cat([split(one[None]) for one in images]).equal(found)


@pytest.mark.parametrize(("resize", "channels"), [("squash", 3), ("crop", 1), ("shortest", 3)])
def test_whole_images_are_pixels_less_128(resize: str, channels: int) -> None:
    prep = preparation("x", 1, size=32, channels=channels, resize=resize)
    images, planes = images_and_planes(prep, 4)
    assert Split(prep)(images).equal(planes.float())
