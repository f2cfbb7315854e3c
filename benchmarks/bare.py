"""The honest rival of P8: a training loop as short as PyTorch allows."""

import time

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.loader import ShardLoader
from trainer.data.normalise import Normaliser
from trainer.data.selection import Prepared
from trainer.recipes.recipe import Recipe
from trainer.run.network import build_network


class Bare:
    """A loop as short as PyTorch allows: what the feed, augmentation and care of ours cost."""

    def __init__(
        self,
        data: Prepared,
        k: int,
        recipe: Recipe,
        batch: int,
        device: torch.device,
        seconds: float,
    ) -> None:
        self.batch, self.device, self.seconds = batch, device, seconds
        self.cuda = device.type == "cuda"
        self.network = build_network(recipe, data.manifest).to(device)
        if self.cuda:
            self.network.to(memory_format=torch.channels_last)
        self.normalise = Normaliser(data.manifest, k).to(device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=1e-4, momentum=0.9, nesterov=True,
            weight_decay=5e-4, fused=self.cuda,
        )  # fmt: skip
        loader = ShardLoader(data, "train", k, batch_size=256, device=device)
        parts = list(loader.batches(np.arange(data.manifest.written("train"))))
        self.values = torch.cat([values.clone() for values, _ in parts])
        self.labels = torch.cat([labels.clone() for _, labels in parts])

    def rate(self) -> float:
        """Images/s over whole epochs."""
        self._epoch(5)
        images, start = 0, time.perf_counter()
        while time.perf_counter() - start < self.seconds:
            images += self._epoch()
            self._wait()
        return images / (time.perf_counter() - start)

    def _epoch(self, most: int | None = None) -> int:
        order = torch.randperm(len(self.labels), device=self.device)
        steps = min(len(order) // self.batch, most or len(order))
        for i in range(steps):
            part = order[i * self.batch : (i + 1) * self.batch]
            inputs = self.normalise(self.values[part].float())
            if self.cuda:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, self.cuda):
                loss = F.cross_entropy(self.network(inputs), self.labels[part])
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
        return steps * self.batch

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
