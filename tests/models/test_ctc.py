"""CR-CTC: known answers, stop-gradient, masked padding."""

import math

import pytest
import torch

from entropy_asr.models.ctc import CtcHead, cr_ctc_loss, ctc_greedy, symmetric_kl


def log_probs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).log_softmax(-1)


def test_ctc_of_one_frame_is_the_label_probability() -> None:
    probabilities = torch.tensor([[[0.1, 0.7, 0.2]]]).log()
    loss, parts = cr_ctc_loss(
        probabilities.repeat(2, 1, 1), torch.tensor([1, 1]), torch.tensor([[1]]), torch.tensor([1]), alpha=0.2
    )
    assert loss.item() == pytest.approx(-math.log(0.7), rel=1e-5)
    assert parts["consistency"].item() == pytest.approx(0.0, abs=1e-7)


def test_symmetric_kl_known_answer() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    expected = 0.5 * (
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1) + 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    )
    value = symmetric_kl(p.log().view(1, 1, 2), q.log().view(1, 1, 2), torch.tensor([1]))
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_target_side_gets_no_gradient() -> None:
    # With both sides free the gradient of KL(q||p) to q would not vanish for this pair; each side is pulled to the other only.
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    first, second = logits.log_softmax(-1).chunk(2)
    symmetric_kl(first, second, torch.tensor([3])).backward()
    p, q = first.exp().detach(), second.exp().detach()
    torch.testing.assert_close(logits.grad[:1], 0.5 * (p - q))
    torch.testing.assert_close(logits.grad[1:], 0.5 * (q - p))


def test_padding_changes_nothing() -> None:
    x = log_probs(4, 12, 6)
    lens = torch.tensor([12, 7, 12, 7])
    targets, target_lens = torch.tensor([[1, 2, 2], [3, 1, 5]]), torch.tensor([3, 2])
    loss, parts = cr_ctc_loss(x, lens, targets, target_lens, alpha=0.2)
    changed = x.clone()
    changed[1, 7:] = log_probs(5, 6)
    changed[3, 7:] = log_probs(5, 6)
    other, other_parts = cr_ctc_loss(changed, lens, targets, target_lens, alpha=0.2)
    assert loss.item() == pytest.approx(other.item(), rel=1e-9)
    assert parts["consistency"].item() == pytest.approx(other_parts["consistency"].item(), rel=1e-9)


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    path = torch.tensor([[0, 3, 3, 0, 3, 2, 2, 0, 1]])
    scores = torch.nn.functional.one_hot(path, 4).float().log()
    assert ctc_greedy(scores, torch.tensor([9])) == [[3, 3, 2, 1]]
    assert ctc_greedy(scores, torch.tensor([5])) == [[3, 3]]


def test_head_has_as_many_linear_layers_as_asked() -> None:
    head = CtcHead(8, 5, layers=3)
    assert sum(isinstance(module, torch.nn.Linear) for module in head.modules()) == 3
    torch.testing.assert_close(head(torch.randn(2, 3, 8)).exp().sum(-1), torch.ones(2, 3))
