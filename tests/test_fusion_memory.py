"""Memory of the fused classifier's figures does not grow with samples × classes."""

import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import torch
from trainer.fusion.measure import measure
from trainer.fusion.pooling import Pooling

networks, batch, classes, batches = 36, 128, 10_450, 16
logits, labels = torch.randn(networks, batch, classes), torch.arange(batch)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

def answers():
    for number in range(batches):
        if number == 3:
            print(resident())
        yield torch.stack([one.clone() for one in logits]), labels.clone()
    print(resident())

weights = Pooling((1.0,) * networks)
fused = dict.fromkeys("abcde", weights)
measure(answers(), networks, batches * batch, fused, [weights] * 22, lambda *_: None)
"""


def test_memory_does_not_grow_with_the_images_that_are_measured() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(float, done.stdout.split())
    assert after - before < 300, done.stdout  # MB; 2,500 with results between temporaries
