"""The options of one preparation, checked; and the name of its folder."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.catalogue import catalogue
from pipeline.choices import CALIB, CODECS, LAYOUTS, RESIZES, TRANSFORMS, default_codec
from pipeline.errors import ConfigError
from pipeline.transforms import default_step

MIN_STEP, MAX_STEP = 0.01, 255
MOST_BYTES = 1 << 23  # of a stored plane or image before it is coded: FFCV reads such pages


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images become shards. `size` px, `step` in units of pixel values (0: no quantiser).

    all_classes: also those that the data set's rule leaves out. test_split: the source's val
    becomes test, and val is taken from train.
    """

    dataset: str
    splits: int
    size: int
    channels: int
    transform: str
    layout: str
    codec: str
    resize: str
    step: float
    calib: float
    limit: int | None
    all_classes: bool = False
    test_split: bool = False

    def __post_init__(self) -> None:
        _one_of("transform", self.transform, TRANSFORMS)
        _one_of("layout", self.layout, LAYOUTS)
        _one_of("codec", self.codec, CODECS)
        _one_of("resize", self.resize, RESIZES)
        _check_name(self.dataset)
        _check_splits(self)
        if self.channels not in (1, 3):
            raise ConfigError(f"--channels {self.channels}: images have 1 (grey) or 3 (RGB)")
        if not 0 <= self.calib < 1:
            raise ConfigError(f"--calib {self.calib:g}: a share of train, from 0 to below 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: at least 1 image per split")
        if self.splits > 1 and not MIN_STEP <= self.step <= MAX_STEP:
            raise ConfigError(f"--step {self.step:g}: from {MIN_STEP} to {MAX_STEP} grey levels")

    @property
    def p(self) -> int:
        """Phases along each side; `splits` = p²."""
        return math.isqrt(self.splits)

    @property
    def plane_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one plane."""
        return self.channels, self.size // self.p, self.size // self.p

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) that a network sees: a plane, or where the aspect was kept
        a square crop of 7/8 of the shorter side, as in 256 → 224 px.
        """
        if self.resize == "shortest":
            return self.channels, self.size * 7 // 8, self.size * 7 // 8
        return self.plane_shape

    def folder(self) -> str:
        """`sub36`, `sub36-dct`, `sub4-s64`, …: each option off its default adds a word."""
        spec = catalogue().get(self.dataset)
        words = [f"sub{self.splits}"]
        if spec is None or self.size != spec.size_for(self.splits):
            words.append(f"s{self.size}")
        if self.channels != (spec.channels if spec else 3):
            words.append(f"c{self.channels}")
        usual = (TRANSFORMS[0], LAYOUTS[0], default_codec(self.splits), RESIZES[0])
        chosen = (self.transform, self.layout, self.codec, self.resize)
        words += [word for word, default in zip(chosen, usual, strict=True) if word != default]
        if self.step != default_step(self.p, self.transform, self.channels):
            words.append(f"step{self.step:g}")
        if self.calib != _default_calib(self.test_split):
            words.append(f"calib{self.calib:g}")
        if self.limit is not None:
            words.append(f"n{self.limit}")
        words += [word for word, on in (("all", self.all_classes), ("test", self.test_split)) if on]
        return "-".join(words)

    def directory(self, out: Path) -> Path:
        """OUT/<dataset>/sub<N>[-…], where this preparation and no other one lives."""
        return out / self.dataset / self.folder()


def _one_of(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(f"--{option} {value}: choose one of {', '.join(valid)}")


def _check_name(dataset: str) -> None:
    plain = dataset.isprintable() and dataset == dataset.strip()
    if not dataset or dataset.startswith(".") or "/" in dataset or not plain:
        raise ConfigError(
            f"dataset name {dataset!r}: it names a folder, so no '/', leading '.', line break or "
            "the like"
        )


def _check_splits(prep: Preparation) -> None:
    splits, p = prep.splits, math.isqrt(max(prep.splits, 0))
    if splits < 1 or p * p != splits or p > 32:
        raise ConfigError(f"--splits {splits}: a square from 1 to 1024, such as 1, 4, 16 or 36")
    if not 1 <= prep.size <= 4096:
        raise ConfigError(f"--size {prep.size}: from 1 to 4096 px")
    if prep.size % p:
        below, above = prep.size // p * p, (prep.size // p + 1) * p
        near = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"--size {prep.size} is not divisible by {p} (--splits {splits} cuts each side "
            f"into {p} phases); use {near}"
        )
    plane = prep.channels * (prep.size // p) ** 2
    if prep.codec != "jpeg" and plane > MOST_BYTES:
        what = "a plane" if splits > 1 else "an image"
        raise ConfigError(
            f"--size {prep.size}: {plane:,} bytes of {what}, more than the {MOST_BYTES:,} of a "
            "page: use a smaller size, or more --splits"
        )
    if splits > 1 and prep.codec == "jpeg":
        raise ConfigError("--codec jpeg stores whole images: use it with --splits 1")
    if splits == 1 and prep.codec == "zstd":
        raise ConfigError("--codec zstd stores planes: with --splits 1 use jpeg or raw")
    if splits == 1 and (prep.transform, prep.layout) != (TRANSFORMS[0], LAYOUTS[0]):
        raise ConfigError("--transform and --layout split images: they do nothing with --splits 1")
    if splits == 1 and prep.step:
        raise ConfigError("--step quantises planes: it does nothing with --splits 1")
    if prep.resize == "shortest" and (splits > 1 or prep.codec != "jpeg"):
        raise ConfigError(
            "--resize shortest keeps the aspect of each image, so sizes differ: "
            "use it with --splits 1 --codec jpeg"
        )


def _default_calib(test_split: bool) -> float:
    """Where val is taken from train, it serves for both."""
    return 0.0 if test_split else CALIB


def preparation(
    dataset: str,
    splits: int,
    *,
    size: int | None = None,
    channels: int | None = None,
    transform: str | None = None,
    layout: str | None = None,
    codec: str | None = None,
    resize: str | None = None,
    step: float | None = None,
    calib: float | None = None,
    limit: int | None = None,
    all_classes: bool = False,
    test_split: bool = False,
) -> Preparation:
    """Fill in what was not said: from datasets.toml, and from the number of splits."""
    spec = catalogue().get(dataset)
    if size is None:
        if spec is None:
            raise ConfigError(
                f"{dataset} is not in the catalogue, so its image size is not known: say --size S "
                f"(px). Known data sets: {', '.join(catalogue())}"
            )
        size = spec.size_for(splits)
    transform = TRANSFORMS[0] if transform is None else transform
    whole = splits == 1
    prep = Preparation(
        dataset=dataset,
        splits=splits,
        size=size,
        channels=(spec.channels if spec else 3) if channels is None else channels,
        transform=transform,
        layout=LAYOUTS[0] if layout is None else layout,
        codec=default_codec(splits) if codec is None else codec,
        resize=RESIZES[0] if resize is None else resize,
        step=step or 0.0 if whole else (1.0 if step is None else step),
        calib=_default_calib(test_split) if calib is None else calib,
        limit=limit,
        all_classes=all_classes,
        test_split=test_split,
    )
    if step is None and not whole:
        return replace(prep, step=default_step(prep.p, transform, prep.channels))
    return prep
