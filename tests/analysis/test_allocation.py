"""EER, LER and AR: known answers, and intervals that cover."""

import pytest
import torch

from entropy_asr.analysis import entropy_allocation


def test_shares_of_the_prior() -> None:
    n = 1000
    found = entropy_allocation(torch.full((n,), 4.0), torch.full((n,), 1.0), torch.full((n,), 0.5))
    assert (found.eer, found.ler, found.ar) == pytest.approx((0.75, 0.125, 6 / 7))
    assert found.ar_interval == pytest.approx((6 / 7, 6 / 7))


def test_nothing_is_clamped() -> None:
    worse = entropy_allocation(torch.full((9,), 1.0), torch.full((9,), 1.5), torch.full((9,), 2.0))
    assert worse.eer == pytest.approx(-0.5) and worse.ler == pytest.approx(-0.5) and worse.ar is None
    assert entropy_allocation(torch.full((9,), 2.0), torch.full((9,), 1.0), torch.full((9,), 1.5)).ar == pytest.approx(2.0)


def test_the_interval_covers_and_is_over_utterances() -> None:
    inside, width = 0, {"tokens": 0.0, "utterances": 0.0}
    for seed in range(60):
        torch.manual_seed(seed)
        utterances = torch.arange(2000) // 20
        hard = torch.rand(100)[utterances]  # tokens of an utterance are alike
        prior = torch.full((2000,), 3.0)
        found = entropy_allocation(prior, 3.0 * hard, 0.3 * hard, utterances)
        inside += found.eer_interval[0] <= 0.5 <= found.eer_interval[1]
        alone = entropy_allocation(prior, 3.0 * hard, 0.3 * hard)
        for name, one in (("utterances", found), ("tokens", alone)):
            width[name] += one.eer_interval[1] - one.eer_interval[0]
    assert inside >= 51  # 57 expected of 60; fewer than 51 happens once in a thousand, less the bootstrap's own error
    assert width["utterances"] > 3 * width["tokens"]


def test_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same"):
        entropy_allocation(torch.ones(3), torch.ones(4), torch.ones(3))
    with pytest.raises(ValueError, match="no uncertainty"):
        entropy_allocation(torch.zeros(3), torch.zeros(3), torch.zeros(3))
