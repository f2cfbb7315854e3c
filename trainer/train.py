"""One shard and a recipe in; a run directory with a trained network out."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import DamagedError, SpectralError
from trainer import checkpoint, models, optim
from trainer.augment import Augmenter
from trainer.evaluate import Metrics, metrics, predict_split
from trainer.loader import ShardLoader, check_samples
from trainer.normalise import Normaliser
from trainer.recipe import Recipe
from trainer.rundir import RunDir
from trainer.selection import Prepared

log = logging.getLogger(__name__)
Advance = Callable[[int, str], None]
ProgressBar = Callable[[str, int, str], AbstractContextManager[Advance]]
MAX_BAD_STEPS = 50  # in a row, with a loss that is no number


class DivergedError(SpectralError):
    """The loss is no number any more."""


def pick_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_network(recipe: Recipe, data: Prepared) -> nn.Module:
    """The recipe's network for planes of this data set; weights depend on its seed alone."""
    channels, size, _ = data.manifest.preparation.input_shape
    torch.manual_seed(recipe.seed)
    return models.build(
        recipe.model,
        classes=len(data.manifest.classes),
        channels=channels,
        size=size,
        **recipe.model_args,
    )


@dataclass
class Progress:
    """How far a run is; kept in its checkpoint."""

    epoch: int = 0
    step: int = 0
    nan_grads: int = 0
    best_top1: float = -1.0
    best_nll: float = float("inf")
    seconds: float = 0.0


class Trainer:
    """The training of one network on one shard, on one device."""

    def __init__(
        self, data: Prepared, k: int, recipe: Recipe, run: RunDir, device: torch.device
    ) -> None:
        data.manifest.check_shard(k)
        self.data, self.k, self.recipe, self.run, self.device = data, k, recipe, run, device
        self.network = build_network(recipe, data).to(device)
        # on the CPU, channels-last convolutions of few channels corrupt memory (torch 2.15)
        last = device.type == "cuda"
        self._memory_format = torch.channels_last if last else torch.contiguous_format
        self.network.to(memory_format=self._memory_format)
        self.optimizer = optim.build(self.network, recipe.optimizer)
        self.normaliser = Normaliser(data.manifest, k, device)
        self.augmenter = Augmenter(recipe.augment, data.manifest.preparation, k, recipe.seed)
        for split in data.manifest.counts:
            if data.manifest.written(split):  # found out now, not after all epochs
                check_samples(data.shard_path(split, k), data.manifest.written(split))
        self.loader = self._loader("train", train=True)
        self.scaler, self.autocast = _mixed_precision(device)
        self.progress = Progress()
        self._bad_in_a_row = 0
        self.steps = recipe.epochs * len(self.loader)

    def train(self, progress_bar: ProgressBar) -> dict[str, Any]:
        """All epochs that are left, then the final evaluation; the result is written too."""
        with self.run.locked():
            self.run.start(self.recipe, self.data.manifest)
            self._resume()
            return self._train(progress_bar)

    def _train(self, progress_bar: ProgressBar) -> dict[str, Any]:
        name = f"{self.data.described} shard {self.k}"
        calib = self._loader("calib") if self.data.manifest.written("calib") else None
        if calib is None:
            log.warning("%s: calib is empty, so the last epoch counts as the best one", name)
        left = self.recipe.epochs - self.progress.epoch
        with progress_bar(name, left * len(self.loader), "steps") as advance:
            while self.progress.epoch < self.recipe.epochs:
                self._one_epoch(calib, advance)
        return self._final()

    def _loader(self, split: str, train: bool = False) -> ShardLoader:
        return ShardLoader(
            self.data,
            split,
            self.k,
            batch_size=self.recipe.batch_size,
            device=self.device,
            train=train,
        )

    def _one_epoch(self, calib: ShardLoader | None, advance: Advance) -> None:
        state, started = self.progress, time.monotonic()
        loss = self._train_epoch(advance)
        state.epoch += 1
        seconds = time.monotonic() - started
        state.seconds += seconds
        images = len(self.loader) * self.loader.batch_size
        self.run.log(
            kind="train",
            epoch=state.epoch,
            step=state.step,
            loss=loss,
            lr=self._rate(),
            images_per_s=images / seconds,
            nan_grads=state.nan_grads,
        )
        found = self._evaluate(calib) if calib else None
        if found:
            self.run.log(kind="eval", split="calib", epoch=state.epoch, **asdict(found))
        self._save(found)
        note = f"calib {found.top1:.2%}" if found else ""
        log.info(
            "%s shard %d: epoch %d/%d, loss %.4f, %s, %.0f images/s",
            self.data.described,
            self.k,
            state.epoch,
            self.recipe.epochs,
            loss,
            note or "no calib",
            images / seconds,
        )

    def _train_epoch(self, advance: Advance) -> float:
        """One pass over the shard; the mean loss."""
        self.network.train()
        total = torch.zeros((), device=self.device)
        epoch, good = self.progress.epoch, 0
        for values, labels in self.loader.epoch(self.recipe.seed, epoch):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            loss = self._step(values, labels)
            if loss is None:
                self._count_bad_step()
            else:
                total += loss
                self._bad_in_a_row, good = 0, good + 1
            self.progress.step += 1
            advance(1, f"epoch {epoch + 1}/{self.recipe.epochs}")
        return (total / max(good, 1)).item()

    def _step(self, values: Tensor, labels: Tensor) -> Tensor | None:
        """Forward, backward, update; None, and no update, if the loss is no number."""
        inputs = self.augmenter(values.float(), self.progress.epoch, self.progress.step)
        inputs = self.normaliser(inputs).contiguous(memory_format=self._memory_format)
        with self.autocast:
            logits = self.network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        if not torch.isfinite(loss):
            return None
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _rate(self) -> float:
        recipe = self.recipe
        return optim.lr_at(
            min(self.progress.step, self.steps - 1),
            steps=self.steps,
            warmup=recipe.schedule.warmup_epochs * len(self.loader),
            peak=recipe.optimizer.lr,
            final=recipe.schedule.final_lr,
        )

    def _count_bad_step(self) -> None:
        self.progress.nan_grads += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"{self.run.path}: the loss was not finite in {MAX_BAD_STEPS} steps in a row (step "
                f"{self.progress.step}); last.pt, if any, is from an epoch before. Try a lower "
                "optimizer.lr"
            )

    def _evaluate(self, loader: ShardLoader) -> Metrics:
        with self.autocast:
            return metrics(*predict_split(self.network, loader, self.normaliser))

    def _save(self, found: Metrics | None) -> None:
        """last.pt always; best.pt when calib says so."""
        state = self.progress
        better = found is None or (found.top1, -found.nll) > (state.best_top1, -state.best_nll)
        if found and better:
            state.best_top1, state.best_nll = found.top1, found.nll
        content = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(state),
            "shard": self.k,
        }
        if better:
            checkpoint.save(self.run.best, {k: content[k] for k in ("model", "progress", "shard")})
        checkpoint.save(self.run.last, content)

    def _resume(self) -> None:
        if not self.run.last.exists():
            return
        content = checkpoint.load(self.run.last, self.device)
        try:
            self.network.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.progress = Progress(**content["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise DamagedError(
                f"{self.run.last} does not fit this run: {str(error).splitlines()[0]}"
            ) from error
        log.info("%s: resuming after epoch %d", self.run.path, self.progress.epoch)

    def _final(self) -> dict[str, Any]:
        """Evaluate best.pt on val, and write result.json."""
        self.network.load_state_dict(checkpoint.load(self.run.best, self.device)["model"])
        state = self.progress
        result: dict[str, Any] = {
            "shard": self.k,
            "epochs": state.epoch,
            "steps": state.step,
            "nan_grads": state.nan_grads,
            "train_seconds": round(state.seconds, 1),
            "parameters": sum(p.numel() for p in self.network.parameters()),
        }
        for split in ("calib", "val"):
            if self.data.manifest.written(split):
                found = self._evaluate(self._loader(split))
                result[split] = asdict(found)
                self.run.log(kind="eval", split=split, epoch=state.epoch, **asdict(found))
        self.run.finish(result)
        return result


def _mixed_precision(
    device: torch.device,
) -> tuple[torch.amp.GradScaler, AbstractContextManager[Any]]:
    """On a GPU bfloat16 where it has it, else float16 with loss scaling; nothing on a CPU."""
    if device.type != "cuda":
        return torch.amp.GradScaler(device.type, enabled=False), nullcontext()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if bf16 else torch.float16
    return torch.amp.GradScaler(device.type, enabled=not bf16), torch.autocast("cuda", dtype)
