"""How networks are weighed, and what is said of the result: the arithmetic alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from trainer.fusion import weights
from trainer.fusion.figures import Outcomes, outcomes, paired, wilson
from trainer.fusion.pooling import Pooling
from trainer.fusion.weights import Answers


def answers(n: int = 600, strengths: tuple[float, ...] = (3.0, 1.5, 0.0)) -> Answers:
    """Networks that know much, something, and nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    truth = np.eye(10)[labels]
    logits = [truth * s + rng.normal(0, 1, (n, 10)) for s in strengths]
    stacked = torch.from_numpy(np.stack(logits).astype(np.float32))
    return Answers(stacked, torch.from_numpy(labels))


def loss(found: Answers, pooling: Pooling) -> float:
    return weights.nll(weights.pool(found, pooling), found.labels)


def test_learned_weights_have_the_least_loss_and_are_not_negative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In blocks too, of which the last is a part of one."""
    found = answers()
    best = weights.learned(found)
    assert min(best) >= 0
    assert best[0] > best[1] > best[2]
    least = loss(found, Pooling(tuple(best)))
    assert least < loss(found, Pooling((1 / 3,) * 3))
    for k in range(3):
        for delta in (-0.1, 0.1):
            other = [*best]
            other[k] = max(0.0, other[k] + delta)
            assert loss(found, Pooling(tuple(other))) > least - 1e-3
    monkeypatch.setattr(weights, "_BLOCK", 3 * 10 * 77)
    assert weights.learned(found) == pytest.approx(best, abs=1e-6)


def test_a_useless_network_gets_no_weight_and_certainty_no_infinite_one() -> None:
    found = answers()
    against = Answers(torch.stack([found.logits[0], -0.1 * found.logits[0]]), found.labels)
    assert weights.learned(against)[1] == 0
    perfect = torch.eye(10)[found.labels][None] * 2
    assert weights.learned(Answers(perfect, found.labels))[0] < 50
    assert weights.learned(found, [1, 2])[0] == 0


def test_geometric_weights_rank_by_accuracy() -> None:
    found = answers(strengths=(0.0, 3.0, 1.5))
    fitted = weights.geometric(found, "logits")
    q = fitted.notes["q"]
    expected = [q * (1 - q) ** 2, q, q * (1 - q)]
    assert list(fitted.pooling.weights) == pytest.approx(expected)


def test_a_single_network_and_a_subset_are_the_best_of_their_kind() -> None:
    found = answers(strengths=(1.5, 3.0, -1.0, 2.9))
    assert weights.single_best(found, "logits").notes == {"network": 1}
    fitted = weights.subset(found, "logits")
    assert fitted.notes["chosen"][2] == 0
    assert sum(fitted.pooling.weights) == pytest.approx(1)
    right = weights.top1(weights.pool(found, fitted.pooling), found)
    assert right >= weights.top1(found.logits[1], found)
    assert weights.best_order(found)[:2] in ([1, 3], [3, 1])


@pytest.mark.parametrize("over", ["logits", "probabilities"])
@pytest.mark.parametrize("method", ["average", "geometric", "single-best", "subset"])
def test_every_temperature_has_the_least_loss(method: str, over: str) -> None:
    """Fitted after pooling; the classes stay as they were."""
    found = answers()
    fitted = weights.fit(found, method, over)
    assert fitted is not None
    pooling = fitted.pooling
    least = loss(found, pooling)
    for factor in (0.9, 1.1):
        other = replace(pooling, temperature=pooling.temperature * factor)
        assert loss(found, other) > least
    plain = replace(pooling, temperature=1.0)
    assert weights.pool(found, plain).argmax(1).equal(weights.pool(found, pooling).argmax(1))


def test_probabilities_are_pooled_as_they_say() -> None:
    found = answers(5)
    pooling = Pooling((1.0, 3.0, 0.0), temperature=2.0, over="probabilities")
    each = found.logits.double().softmax(2)
    expected = ((each[0] + 3 * each[1]) / 4).log() / 2
    assert torch.allclose(pooling(found.logits.double()), expected)
    assert Pooling.read(pooling.row()) == pooling
    for wrong in ({"weights": [0, 0]}, {"weights": [-1, 2]}, {"temperature": 0}, {"over": "x"}):
        with pytest.raises(ValueError, match="weights"):
            Pooling.read(pooling.row() | wrong)


def of(found: Answers, k: int) -> Outcomes:
    return Outcomes.of(outcomes(found.logits[k], found.labels).numpy())


def test_outcomes_are_what_they_say() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5.0], [5, 4, 3, 2, 1, 0.0]])
    found = Outcomes.of(outcomes(logits, torch.tensor([0, 0, 1])).numpy())
    probabilities = logits.double().softmax(1)
    assert found.top1.tolist() == [True, False, False]
    assert found.top5.tolist() == [True, False, True]
    assert found.predicted.tolist() == [0, 5, 0]
    right = probabilities[[0, 1, 2], [0, 0, 1]]
    assert found.nll == pytest.approx((-right.log()).numpy(), rel=1e-6)
    assert found.confidence == pytest.approx(probabilities.amax(1).numpy(), rel=1e-6)


def test_calibration_of_a_known_case() -> None:
    """Ten answers of confidence 0.9, of which six are right, and ten of 0.5, all right."""
    hits = np.array([True] * 6 + [False] * 4 + [True] * 10)
    confidence = np.array([0.9] * 10 + [0.5] * 10, np.float32)
    found = Outcomes(hits, hits, np.zeros(20, np.float32), confidence, np.zeros(20, np.int32))
    assert found.ece == pytest.approx(0.5 * 0.3 + 0.5 * 0.5)
    low, high = found.reliability()
    assert low == pytest.approx({"share": 0.5, "confidence": 0.5, "accuracy": 1.0})
    assert high == pytest.approx({"share": 0.5, "confidence": 0.9, "accuracy": 0.6})


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """In 400 draws of 300 samples from a network whose true figures are known."""
    rng = np.random.default_rng(1)
    inside, nlls = 0, 0
    for _ in range(400):
        p = rng.uniform(0.4, 1, 300).astype(np.float32)  # right with probability p: mean 0.7
        hits = rng.random(300) < p
        nll = np.where(hits, -np.log(p), -np.log1p(-np.minimum(p, 0.999))).astype(np.float32)
        row = Outcomes(hits, hits, nll, p, np.zeros(300, np.int32)).figures()
        low, high = row["top1_interval"]
        inside += low <= 0.7 <= high
        nlls += row["nll_interval"][0] <= 0.5311 <= row["nll_interval"][1]
        assert row["ece_interval"][0] <= row["ece"] <= row["ece_interval"][1]
    assert inside > 0.92 * 400
    assert nlls > 0.9 * 400
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_pairs_are_compared_image_by_image() -> None:
    found = answers(2000, (2.0, 2.0, 1.0))
    first, second, worse = (of(found, k).top1 for k in range(3))
    alike, better = paired(first, second), paired(first, worse)
    assert alike["interval"][0] < alike["difference"] < alike["interval"][1]
    assert alike["mcnemar_p"] > 0.01
    assert better["interval"][0] > 0
    assert better["mcnemar_p"] < 1e-6
    gained, lost = (first & ~worse).sum(), (worse & ~first).sum()
    assert better["difference"] == pytest.approx((gained - lost) / 2000)
    assert better["mcnemar_p"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    same = paired(first, first)
    assert (same["difference"], same["mcnemar_p"]) == (0, 1)


def bootstrap(values: Tensor, draws: int = 2000) -> list[float]:
    rng = np.random.default_rng(3)
    array = values.numpy()
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(draws)]
    return np.percentile(means, [2.5, 97.5]).tolist()


def test_the_quick_bootstrap_is_the_bootstrap() -> None:
    found = answers(800, (2.0, 1.0))
    own, other = of(found, 0).top1, of(found, 1).top1
    expected = bootstrap(torch.from_numpy(own.astype(float) - other.astype(float)))
    assert paired(own, other)["interval"] == pytest.approx(expected, abs=0.004)


def test_a_temperature_stays_finite_where_no_mistake_is_made() -> None:
    labels = torch.arange(300) % 3
    found = Answers(2 * torch.eye(3)[labels][None], labels)
    fitted = weights.fit(found, "average")
    assert fitted is not None
    assert 0.1 < fitted.pooling.temperature < 1
