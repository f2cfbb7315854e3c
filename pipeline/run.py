"""An index and a preparation in; shards and samples.parquet written, the manifest out."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import __version__, manifest
from pipeline.beton import PARTIAL, digest, image_field
from pipeline.beton_writer import BetonWriter, Written
from pipeline.errors import SourceError
from pipeline.manifest import Manifest, Plane, unrotated_moments
from pipeline.options import Preparation
from pipeline.pool import Pool
from pipeline.progress import Advance
from pipeline.resize import FILTER
from pipeline.sources import Index, Source
from pipeline.splits import SPLITS
from pipeline.splitter import Splitter
from pipeline.worker import Chunk, Errors, Moments, Task

CHUNK_BYTES = 8 << 20  # of pixels that one task decodes
CHUNK_IMAGES = 256
PSNR_IMAGES = 200  # about so many, spread over the index, measure the quality
SAMPLES = "samples.parquet"
SAMPLES_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


def _chunk_images(prep: Preparation) -> int:
    return max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (prep.size * prep.size * prep.channels)))


def _slot_bytes(prep: Preparation) -> int:
    """Room for the payloads of a chunk: pixels, what a codec may add, and for `shortest`
    twice as much; a chunk that needs more travels through the pipe.
    """
    pixels = prep.size * prep.size * prep.channels * _chunk_images(prep)
    overhead = 1024 * _chunk_images(prep) * prep.splits
    return (2 if prep.resize == "shortest" else 1) * (pixels + pixels // 128) + overhead


class Run:
    """One run: its writers, and what it adds up."""

    def __init__(
        self, prep: Preparation, source: Source, index: Index, directory: Path, max_bad: int
    ) -> None:
        self.prep, self.source, self.index = prep, source, index
        self.directory, self.max_bad = directory, max_bad
        self.bad: list[tuple[str, str]] = []
        self.counts = {s: {"indexed": 0, "written": 0, "quarantined": 0} for s in SPLITS}
        self.moments = Moments.zero(prep)
        self.train_moments = Moments.zero(prep)
        self.errors = Errors(0, 0.0, np.zeros(prep.splits))
        self.measured = 0
        self.files: dict[str, dict[str, Any]] = {}
        self.payload_bytes = np.zeros(prep.splits, np.int64)

    def write(self, workers: int, advance: Advance) -> Manifest:
        """All shards, then samples.parquet; the manifest is returned, not yet saved."""
        partial = self.directory / (SAMPLES + PARTIAL)
        chunks = -(-len(self.index.table) // _chunk_images(self.prep))
        with (
            Pool(self.prep, self.source, min(workers, chunks), _slot_bytes(self.prep)) as pool,
            pq.ParquetWriter(partial, SAMPLES_SCHEMA, compression="zstd") as samples,
        ):
            for split in SPLITS:
                rows = self.index.table.filter(pc.equal(self.index.table["split"], split))
                if len(rows):
                    self._write_split(split, rows, pool, samples, advance)
        self._finish_samples(partial)
        return self._manifest()

    def _write_split(
        self, split: str, rows: pa.Table, pool: Pool, samples: Any, advance: Advance
    ) -> None:
        folder = self.directory / split
        folder.mkdir()
        field = image_field(self.prep)
        paths = [folder / f"shard_{k:02d}.beton" for k in range(self.prep.splits)]
        size = _chunk_images(self.prep)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(closing(BetonWriter(path, field, len(rows)))) for path in paths
            ]
            for chunk, payload in pool.run(self._tasks(rows)):
                part = rows.slice(chunk.number * size, size)
                self._append(writers, chunk, payload, part["label"].to_numpy())
                samples.write_table(_sample_rows(part, chunk))
                self._count(split, part, chunk)
                advance(len(part), f"{len(self.bad)} bad")
            self._refuse_nothing_written()
            for path, writer in zip(paths, writers, strict=True):
                self._record(path, writer.finish())
        manifest.sync_directory(folder)

    def _tasks(self, rows: pa.Table) -> Iterator[Task]:
        """Chunks of a split; every so-many-th image of the whole index is measured."""
        size = _chunk_images(self.prep)
        every = max(1, len(self.index.table) // PSNR_IMAGES)
        for number, start in enumerate(range(0, len(rows), size)):
            ids = rows["id"].slice(start, size).to_pylist()
            yield Task(number, ids, [(start + i) % every == 0 for i in range(len(ids))])

    def _append(
        self,
        writers: list[BetonWriter],
        chunk: Chunk,
        payload: memoryview,
        labels: NDArray[np.int32],
    ) -> None:
        stored = np.array([reason is None for reason in chunk.reasons])
        payload = memoryview(chunk.inline) if chunk.inline is not None else payload
        start = 0
        for writer, sizes in zip(writers, chunk.sizes, strict=True):
            size = int(sizes.sum())
            writer.append(payload[start : start + size], sizes, labels[stored], chunk.stored_shapes)
            start += size

    def _count(self, split: str, part: pa.Table, chunk: Chunk) -> None:
        for sample, reason in zip(part["id"].to_pylist(), chunk.reasons, strict=True):
            if reason is not None:
                self.bad.append((sample, reason))
        if len(self.bad) > self.max_bad:
            shown = "; ".join(f"{sample}: {reason}" for sample, reason in self.bad[:5])
            raise SourceError(
                f"{len(self.bad)} images cannot be used, more than --max-bad {self.max_bad}: "
                f"{shown}{'; …' if len(self.bad) > 5 else ''}"
            )
        bad = sum(reason is not None for reason in chunk.reasons)
        counts = self.counts[split]
        counts["indexed"] += len(part)
        counts["quarantined"] += bad
        counts["written"] += len(part) - bad
        self.moments.add(chunk.moments)
        if split == "train":
            self.train_moments.add(chunk.moments)
        self.errors.add(chunk.errors)
        self.measured += chunk.measured

    def _record(self, path: Path, written: Written) -> None:
        name = path.relative_to(self.directory).as_posix()
        self.files[name] = {"size": written.size, "digest": written.digest}
        self.payload_bytes[int(path.stem.removeprefix("shard_"))] += written.payload_bytes

    def _finish_samples(self, partial: Path) -> None:
        path = self.directory / SAMPLES
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        self.files[SAMPLES] = {"size": partial.stat().st_size, "digest": digest(partial)}
        partial.rename(path)

    def _manifest(self) -> Manifest:
        prep = self.prep
        splitter = Splitter(prep) if prep.splits > 1 else None
        return Manifest(
            preparation=prep,
            tool_version=__version__,
            source=str(self.source.root.resolve()),
            layout=self.source.layout,
            fingerprint=self.index.fingerprint(),
            resize_filter=FILTER.name.lower(),
            classes=list(self.index.classes),
            counts=self.counts,
            psnr_db=psnr(self.errors.image, self.errors.values),
            psnr_images=self.measured,
            colour=splitter.colour.tolist() if splitter else np.eye(prep.channels).tolist(),
            matrix=splitter.matrix.tolist() if splitter else [[1.0]],
            planes=[self._plane(k, splitter) for k in range(prep.splits)],
            files=dict(sorted(self.files.items())),
        )

    def _refuse_nothing_written(self) -> None:
        if not self.counts["train"]["written"]:
            sample, reason = self.bad[0]
            raise SourceError(f"no image of train can be used; {sample}: {reason}")

    def _plane(self, k: int, splitter: Splitter | None) -> Plane:
        channels = self.prep.channels
        step = float(splitter.steps[k]) if splitter else 1.0
        offset = splitter.offsets[k] if splitter else np.zeros(channels)
        colour = splitter.colour if splitter else np.eye(channels)
        train = self.train_moments
        mean, std = unrotated_moments(
            train.pixels, train.first[k], train.second[k], step, offset, colour
        )
        values = max(1, self.moments.pixels * channels)
        stored = sum(count["written"] for count in self.counts.values())
        return Plane(
            k=k,
            step=step,
            offset=offset.tolist(),
            clipped=int(self.moments.clipped[k]) / values,
            mean=mean,
            std=std,
            bytes_per_sample=int(self.payload_bytes[k]) / stored,
            psnr_db=psnr(float(self.errors.planes[k]), self.errors.values // self.prep.splits),
        )


def _sample_rows(part: pa.Table, chunk: Chunk) -> pa.Table:
    status = ["written" if reason is None else "quarantined" for reason in chunk.reasons]
    return pa.table(
        {
            "id": part["id"],
            "split": part["split"],
            "label": part["label"],
            "width": chunk.shapes[:, 0],
            "height": chunk.shapes[:, 1],
            "status": status,
            "reason": pa.array(chunk.reasons, pa.string()),
        },
        schema=SAMPLES_SCHEMA,
    )


def psnr(squares: float, values: int) -> float | None:
    """Peak signal-to-noise ratio in dB of a sum of squared errors over `values` values, peak
    255: pooled, one mean over all of them. None without values or without error.
    """
    if not values or not squares:
        return None
    return 10 * math.log10(255.0**2 * values / squares)
