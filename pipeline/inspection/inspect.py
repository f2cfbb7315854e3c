"""Describes a beton or a prepared directory, as a dictionary and as lines of text."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, SpectralError, printable
from pipeline.format import manifest
from pipeline.format.beton import BetonReader
from pipeline.sources.index import SPLITS
from pipeline.stage.samples import quarantined
from pipeline.stage.verify import quick_check


def describe(path: Path) -> dict[str, Any]:
    """What `path` is: keys `kind`, then those of a beton or of a directory."""
    if path.is_dir():
        return _directory(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or directory")
    return _beton(path)


def _beton(path: Path) -> dict[str, Any]:
    with BetonReader(path) as reader:
        reader.check()
        sizes = reader.payload_sizes
        found: dict[str, Any] = {
            "kind": "beton",
            "path": str(path),
            "format": "FFCV 2",
            "size": reader.size,
            "page_size": reader.page_size,
            "samples": reader.samples,
            "fields": reader.names,
            "codec": reader.codec,
            "shape": list(reader.shape(0)) if reader.samples else [],
            "classes": len(np.unique(reader.labels)),
            "bytes_per_sample": float(sizes.mean()) if len(sizes) else 0.0,
        }
    try:
        described = manifest.load(path.parent.parent)
    except ConfigError:
        return found  # a beton on its own
    except SpectralError as error:  # it may be another program's
        return found | {"manifest": f"not used: {error}"}
    for plane in described.planes:
        if path.name == Path(described.shard("train", plane.k)).name:
            found |= {
                "split": path.parent.name,
                "plane": plane.k,
                "step": plane.step,
                "offset": plane.offset,
                "clipped": plane.clipped,
                "psnr_db": plane.psnr_db,
            }
    return found


def _directory(path: Path) -> dict[str, Any]:
    found = manifest.load(path)
    prep = found.preparation
    return {
        "kind": "prepared data set",
        "path": str(path),
        "dataset": prep.dataset,
        "splits": prep.splits,
        "transform": prep.transform,
        "layout": prep.layout,
        "codec": prep.codec,
        "resize": prep.resize,
        "size": prep.size,
        "channels": prep.channels,
        "plane_shape": list(prep.plane_shape),
        "classes": len(found.classes),
        "counts": found.counts,
        "psnr_db": found.psnr_db,
        "psnr_images": found.psnr_images,
        "bytes_per_sample_and_plane": _mean([p.bytes_per_sample for p in found.planes]),
        "total_bytes": sum(entry["size"] for entry in found.files.values()),
        "planes": [vars(plane) for plane in found.planes],
        "problems": quick_check(path, found),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def lines(found: dict[str, Any]) -> list[str]:
    """The description for people."""
    text = _beton_lines(found) if found["kind"] == "beton" else _directory_lines(found)
    return [*map(printable, text)]


def _beton_lines(found: dict[str, Any]) -> list[str]:
    shape = "×".join(map(str, found["shape"]))
    text = [
        f"{found['path']}: {found['format']} beton, {found['samples']:,} samples, "
        f"{found['size']:,} bytes",
        f"image: {found['codec']}, {shape} (channels×height×width), "
        f"{found['bytes_per_sample']:,.0f} bytes a sample",
        f"label: {found['classes']} classes present",
    ]
    if "manifest" in found:
        text.append(f"manifest: {found['manifest']}")
    if "plane" in found:
        text.append(
            f"plane {found['plane']} of {found['split']}: step {found['step']:g}, "
            f"clipped {found['clipped']:.2e}, {_decibel(found['psnr_db'])}"
        )
    return text


def _directory_lines(found: dict[str, Any]) -> list[str]:
    stored = "×".join(map(str, found["plane_shape"]))
    if found["resize"] == "shortest":
        stored = "images of varying size"
    whole = found["splits"] == 1
    how = "whole images" if whole else f"{found['transform']}, {found['layout']} layout"
    counts = found["counts"]
    text = [
        f"{found['path']}: {found['dataset']}, {found['splits']} shards ({how}), {found['codec']}",
        f"images: {found['size']} px ({found['resize']}), {found['channels']} channels, "
        f"{found['classes']} classes; stored as {stored}",
        f"{found['bytes_per_sample_and_plane']:,.0f} bytes a sample and plane, "
        f"{found['total_bytes']:,} bytes in all, PSNR {_quality(found)} "
        f"(pooled over {found['psnr_images']} images)",
    ]
    for split in SPLITS:
        c = counts[split]
        if split == "test" and not c["indexed"]:
            continue
        text.append(
            f"{split:>6}: {c['indexed']:,} indexed = {c['written']:,} written + "
            f"{c['quarantined']:,} quarantined"
        )
    text.append("plane   step  clipped  bytes/sample  PSNR")
    for plane in found["planes"]:
        text.append(
            f"{plane['k']:>5} {plane['step']:>6.2f} {plane['clipped']:>8.1e} "
            f"{plane['bytes_per_sample']:>13,.0f}  {_decibel(plane['psnr_db'])}"
        )
    return text + [f"not as it was written: {problem}" for problem in found["problems"]]


def _quality(found: dict[str, Any]) -> str:
    exact = found["psnr_db"] is None and found["psnr_images"]
    return "infinite, exact" if exact else _decibel(found["psnr_db"])


def _decibel(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} dB"


def bad_images(directory: Path) -> list[dict[str, str]]:
    """`id` and `reason` of each image that could not be used."""
    if directory.is_file():
        raise ConfigError(f"{directory} is a file: name its prepared directory")
    return [{"id": sample, "reason": reason} for sample, reason in quarantined(directory)]


def bad_lines(bad: list[dict[str, str]]) -> list[str]:
    """The same for people."""
    head = f"{len(bad)} images could not be used" + ":" * bool(bad)
    return [head, *(f"  {printable(row['id'])}: {printable(row['reason'])}" for row in bad)]
