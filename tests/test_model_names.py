"""Networks by name: what is no network, or no argument of one, is answered with what is."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from tests.test_models import on_meta
from trainer import models


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("vgg", {}, "known are cifar-resnet20.*shake-shake26-2x64d.*alexnet"),
        ("resnet²0", {}, "known are cifar-resnet20"),
        ("resnet19", {}, "one of 18, 34, 50, 101, 152"),
        ("resnet21x1", {}, r"6n\+2.*or one of 18, 34"),
        ("resnet20x0", {}, "at least 1"),
        ("cifar-resnet21", {}, r"cifar-resnet21: the depth is 6n\+2, such as 8, 20"),
        ("cifar-resnet20", {"depth": 3}, r"no model_args.depth here; valid are width, bottleneck"),
        ("resnet20x4", {"width": 3}, "this network has no arguments"),
        ("cifar-resnet20", {"width": 0}, "at least 1"),
        ("cifar-resnet20", {"width": 16.0}, "must be an integer"),
        ("cifar-resnet110", {"bottleneck": 1}, "must be true or false"),
        ("preact-resnet110", {"bottleneck": True, "width": True}, "width = True: must be an int"),
        ("preact-resnet20", {"preact_stage": [True, False]}, "3 of true or false, one a stage"),
        ("preact-resnet20", {"preact_stage": [1, 0, 0]}, "a list of true and false"),
        ("imagenet-preact-resnet18", {"preact_stage": [True] * 3}, "4 of true or false"),
        ("preact-resnet22", {"bottleneck": True}, r"9n\+2, such as 11, 29"),
        ("se-preact-resnet20", {"reduction": 0}, "reduction = 0: at least 1"),
        ("wrn-28-0", {}, "at least 1"),
        ("wrn-27-10", {}, r"6n\+4, such as 10, 22"),
        ("wrn-28-10", {"dropout": 1.0}, "from 0 to below 1"),
        ("wrn-28-10", {"dropout": "much"}, "must be a number"),
        ("densenet-bc-100-0", {}, "at least 1"),
        ("densenet-bc-101-12", {}, r"6n\+4"),
        ("densenet-101-12", {}, r"3n\+4"),
        ("densenet120", {}, "one of 121, 161, 169, 201"),
        ("pyramidnet-164-270", {"bottleneck": True, "alpha": 3}, "valid are bottleneck"),
        ("imagenet-pyramidnet-164-300", {}, "one of 18, 34, 50, 101, 152, 200"),
        ("resnext29-0x64d", {}, "at least 1"),
        ("resnext28-8x64d", {}, r"9n\+2"),
        ("imagenet-resnext18-32x4d", {}, "one of 50, 101, 152"),
        ("shake-shake26-2x31d", {}, "even"),
        ("shake-shake26-3x32d", {}, "no network"),
        ("fc0", {}, "at least 1"),
        ("alexnet", {"dropout": -0.1}, "from 0 to below 1"),
    ],
)
def test_a_wrong_network_is_answered_with_the_valid_ones(
    name: str, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        models.build(name, classes=10, channels=3, size=32, **args)


def test_an_integer_is_a_number() -> None:
    """TOML's `dropout = 0` means 0.0."""
    assert models.build("wrn-10-1", classes=3, channels=1, size=8, dropout=0)


def test_every_family_is_named_by_an_example_that_can_be_built() -> None:
    for text in models.examples():
        name = text.split()[0].rstrip(",")
        arguments = models.arguments(name)
        assert on_meta(name, 32, **arguments)
