"""What a recipe may say: values in, a checked `Recipe` out."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

import tomli_w

from pipeline.errors import ConfigError

_LARGEST = 1024  # px; of a shift or a square


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """`sgd` (momentum, nesterov), `adam` and `adamw` (beta1, beta2, amsgrad), `lars` (momentum,
    nesterov) or `lamb` (beta1, beta2). `weight_decay` acts on all weights, or with `decay_all`
    false on those of convolutions and linear layers alone, not on biases and normalisation.
    `bias_lr_factor`: biases, and scales and shifts of normalisation, learn at so many times the
    rate, and their decay is divided by it, so that a step takes the same share of all weights.
    `stem_epochs`: the stem (of a network that has one) learns in so many first epochs, 0: in all.
    `clip_norm`: gradients are scaled down to this norm, 0: never.
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    amsgrad: bool = False
    weight_decay: float = 5e-4
    decay_all: bool = True
    bias_lr_factor: float = 1.0
    stem_epochs: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        _one_of(self.name, "optimizer.name", ("sgd", "adam", "adamw", "lars", "lamb"))
        _require(self.lr > 0, "optimizer.lr", self.lr, "positive")
        for key in ("momentum", "beta1", "beta2"):
            _require(
                0 <= getattr(self, key) < 1, f"optimizer.{key}", getattr(self, key), "in [0, 1)"
            )
        factor = self.bias_lr_factor
        _require(factor > 0, "optimizer.bias_lr_factor", factor, "positive")
        for key in ("weight_decay", "stem_epochs", "clip_norm"):
            _require(getattr(self, key) >= 0, f"optimizer.{key}", getattr(self, key), "at least 0")
        nesterov_alone = self.name == "sgd" and self.nesterov and not self.momentum
        _require(not nesterov_alone, "optimizer.nesterov", True, "false without momentum")
        misplaced = self.amsgrad and self.name not in ("adam", "adamw")
        _require(not misplaced, "optimizer.amsgrad", True, "false but for adam and adamw")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps: `cosine` down to `final_lr`, `sgdr` (cosines of
    `period_epochs`, each `period_factor` times as long as the last), `linear` down to `final_lr`,
    `multistep` (times `gamma` at each of `milestones`, epochs), `step` (times `gamma` every
    `period_epochs`), `onecycle` or `constant`; before it a linear warm-up over `warmup_epochs` or
    a `warmup_share` of all steps.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    warmup_share: float = 0.0
    final_lr: float = 0.0
    milestones: list[float] = field(default_factory=list)
    gamma: float = 0.1
    period_epochs: float = 30.0
    period_factor: float = 2.0

    def __post_init__(self) -> None:
        names = ("cosine", "sgdr", "linear", "multistep", "step", "onecycle", "constant")
        _one_of(self.name, "schedule.name", names)
        for key in ("warmup_epochs", "final_lr"):
            _require(getattr(self, key) >= 0, f"schedule.{key}", getattr(self, key), "at least 0")
        _require(
            0 <= self.warmup_share < 1, "schedule.warmup_share", self.warmup_share, "in [0, 1)"
        )
        both = self.warmup_epochs and self.warmup_share
        _require(not both, "schedule.warmup_share", self.warmup_share, "0 with warmup_epochs")
        _require(0 < self.gamma <= 1, "schedule.gamma", self.gamma, "in (0, 1]")
        _require(self.period_epochs > 0, "schedule.period_epochs", self.period_epochs, "positive")
        _require(
            self.period_factor >= 1, "schedule.period_factor", self.period_factor, "at least 1"
        )
        wanted = self.name != "multistep" or bool(self.milestones)
        _require(wanted, "schedule.milestones", self.milestones, "given with multistep")
        for key in ("warmup_epochs", "warmup_share"):
            value = getattr(self, key)
            cycles = self.name != "onecycle" or not value
            _require(cycles, f"schedule.{key}", value, "0 with onecycle, which warms up itself")
        rising = all(a < b for a, b in zip([0.0, *self.milestones], self.milestones, strict=False))
        _require(rising, "schedule.milestones", self.milestones, "epochs above 0, each later")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to training batches; sides and shifts in pixels of the plane.

    `horizontal_flip`, `vertical_flip`, `rotate180`: of half of the images each, where that is
    exact on the plane; `alternating_flip`: the horizontal one is drawn for the first epoch alone,
    and each image is mirrored anew in every epoch after it. `shift`: up to so many pixels each way;
    `shift_border`: what comes in is `grey` or the image itself, mirrored (`reflect`).
    `cutout`: side of a square set to 0 after normalisation. `dual_cutout`: the weight of the
    difference between the logits of two views with a square each, 0 for one view. `erasing`:
    share of images of which a rectangle is set to 0. `mixup`, `cutmix`, `ricap`: the Beta
    distribution's parameter, 0 for none; of mixup and cutmix together each step takes one.
    `policy`: none, randaugment (of `policy_operations` at `policy_magnitude`, 0 to 30) or
    trivialaugment, torchvision's; for whole images only.
    """

    horizontal_flip: bool = True
    vertical_flip: bool = False
    rotate180: bool = False
    alternating_flip: bool = False
    shift: int = 0
    shift_border: str = "grey"
    cutout: int = 0
    dual_cutout: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ricap: float = 0.0
    policy: str = "none"
    policy_operations: int = 2
    policy_magnitude: int = 9

    def __post_init__(self) -> None:
        for key in ("shift", "cutout"):
            value = getattr(self, key)
            _require(0 <= value <= _LARGEST, f"augment.{key}", value, f"0 to {_LARGEST} px")
        _one_of(self.shift_border, "augment.shift_border", ("grey", "reflect"))
        flipped = self.horizontal_flip or not self.alternating_flip
        _require(flipped, "augment.alternating_flip", True, "false without horizontal_flip")
        _require(0 <= self.erasing <= 1, "augment.erasing", self.erasing, "in [0, 1]")
        for key in ("dual_cutout", "mixup", "cutmix", "ricap"):
            _require(getattr(self, key) >= 0, f"augment.{key}", getattr(self, key), "at least 0")
        _one_of(self.policy, "augment.policy", ("none", "randaugment", "trivialaugment"))
        operations, magnitude = self.policy_operations, self.policy_magnitude
        _require(1 <= operations <= 10, "augment.policy_operations", operations, "1 to 10")
        _require(0 <= magnitude <= 30, "augment.policy_magnitude", magnitude, "0 to 30")
        squares = self.cutout or not self.dual_cutout
        _require(bool(squares), "augment.dual_cutout", self.dual_cutout, "0 without cutout")
        alone = not self.ricap or not (self.mixup or self.cutmix)
        _require(alone, "augment.ricap", self.ricap, "0 with mixup or cutmix")
        mixes = self.mixup or self.cutmix or self.ricap
        both = self.dual_cutout and mixes
        _require(not both, "augment.dual_cutout", self.dual_cutout, "0 with mixup, cutmix or ricap")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train one network on one shard.

    It lasts `epochs` or `iterations` (steps), and is evaluated every `eval_every` steps (0: at the
    end of each epoch). `batch_size` is that of one step, over all GPUs; `micro_batch` the most
    that one GPU takes at once (0: all): gradients of several are added up, and batch norm sees one
    at a time (ghost batch norm). `repeats`: how often each image is in a batch, augmented
    otherwise each time; an epoch has as many steps as ever. `loss`: `ce`, cross-entropy, or `bce`,
    binary cross-entropy of each class. `precision`: auto, fp32, bf16, fp16 (with loss scaling) or
    half (weights, batch norm and optimiser in float16 too, no scaling: apex' O3, a comparison).
    `ema`: decay a step of the averaged weights that are then evaluated and kept, 0 for none.
    `sync_bn`: batch norm over all GPUs. `test_flip`, `test_shift`: final figures are of the mean
    logits of each image and its mirror image (where that is exact on the plane), and of both moved
    by so many pixels up and left, and down and right; those weigh half. `test_crops`: 10 for final
    figures of the mean probabilities of four corners, centre and their mirror images, of images
    that kept their aspect; 1 for the centre, by which the best epoch is chosen in any case.
    """

    model: str
    batch_size: int
    epochs: int = 0
    iterations: int = 0
    eval_every: int = 0
    repeats: int = 1
    loss: str = "ce"
    seed: int = 0
    label_smoothing: float = 0.0
    micro_batch: int = 0
    precision: str = "auto"
    ema: float = 0.0
    sync_bn: bool = False
    test_flip: bool = False
    test_shift: int = 0
    test_crops: int = 1
    model_args: dict[str, Any] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for key in ("epochs", "iterations", "eval_every", "micro_batch"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        _require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2")
        lasts = bool(self.epochs or self.iterations)
        _require(lasts, "epochs", self.epochs, "at least 1, or else iterations")
        both = f"{self.epochs} and iterations = {self.iterations}"
        _require(not (self.epochs and self.iterations), "epochs", both, "one of the two")
        _require(1 <= self.repeats <= self.batch_size, "repeats", self.repeats, "1 to batch_size")
        _one_of(self.loss, "loss", ("ce", "bce"))
        lowest, peak = self.schedule.final_lr, self.optimizer.lr
        _require(lowest <= peak, "schedule.final_lr", lowest, f"at most optimizer.lr, {peak:g}")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2^31 - 1")
        _require(
            0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)"
        )
        known = ("auto", "fp32", "bf16", "fp16", "half")
        _one_of(self.precision, "precision", known)
        small = self.precision == "half" and self.optimizer.name in ("adam", "adamw")
        _require(not small, "precision", "half", f"another: {self.optimizer.name}'s eps is 0 in it")
        _require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        _require(self.test_crops in (1, 10), "test_crops", self.test_crops, "1 or 10")
        shift, alone = self.test_shift, not (self.test_flip or self.test_shift)
        _require(0 <= shift <= _LARGEST, "test_shift", shift, f"0 to {_LARGEST} px")
        _require(alone or self.test_crops == 1, "test_crops", 10, "1 with test_flip or test_shift")
        alternates = self.augment.alternating_flip
        _require(not alternates or self.repeats == 1, "repeats", self.repeats,
                 "1 with augment.alternating_flip")  # fmt: skip

    def toml(self) -> str:
        """All values, as a recipe file."""
        return tomli_w.dumps(asdict(self))


def _one_of(value: str, key: str, known: tuple[str, ...]) -> None:
    _require(value in known, key, value, f"one of {', '.join(known)}")


def _require(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"recipe: {key} = {value}: must be {wanted}")


def build(kind: type[Any], values: dict[str, Any], prefix: str = "") -> Any:
    """A dataclass from a TOML table; unknown keys, missing ones and wrong types refused."""
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"recipe: unknown key {prefix}{key}; valid are "
                f"{', '.join(prefix + name for name in known)}"
            )
    required = [
        n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    ]
    if lacking := [prefix + name for name in required if name not in values]:
        raise ConfigError(f"recipe: lacks {', '.join(lacking)}")
    try:
        return kind(
            **{key: _value(known[key].type, value, prefix + key) for key, value in values.items()}
        )
    except TypeError as error:
        raise ConfigError(f"recipe: {error}") from error


def _value(kind: Any, value: Any, key: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ConfigError(f"recipe: {key} is a table, not {value!r}")
        return build(kind, value, f"{key}.")
    if kind is float and type(value) is int:
        value = float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"recipe: {key} = {value}: must be finite")
    if kind == list[float] and type(value) is list:
        return [_value(float, entry, key) for entry in value]
    wanted = getattr(kind, "__origin__", kind)
    if type(value) is not wanted:
        raise ConfigError(f"recipe: {key} = {value!r}: must be of type {wanted.__name__}")
    return value
