"""CR-CTC: known answers, stop-gradient, masked padding."""

import math
from itertools import groupby, product

import pytest
import torch

from entropy_asr.models.ctc import EMBEDDING_SCALE, CtcHead, cr_ctc_loss, ctc_greedy, ctc_prefix_beam, embedding_ctc, symmetric_kl


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


def test_prefix_beam_adds_the_paths_of_a_sequence() -> None:
    # Silence is the best path, 0.6 * 0.6; but "1" has three: 0.4 * 0.6, 0.6 * 0.4 and 0.4 * 0.4.
    frames = torch.tensor([[[0.6, 0.4], [0.6, 0.4], [0.0, 1.0]]]).log()
    assert ctc_greedy(frames, torch.tensor([2])) == [[]]
    assert ctc_prefix_beam(frames, torch.tensor([2]), beams=2) == [[1]]


def test_a_wide_prefix_beam_finds_the_likeliest_sequence_of_all() -> None:
    torch.manual_seed(3)
    scores, lens = log_probs(20, 5, 3), torch.tensor([5, 4, 3, 5] * 5)
    expected = []
    for utterance, length in zip(scores, lens.tolist(), strict=True):
        total: dict[tuple[int, ...], float] = {}
        for path in product(range(3), repeat=length):
            said = tuple(label for label, _ in groupby(path) if label != 0)
            probability = math.exp(sum(utterance[t, label].item() for t, label in enumerate(path)))
            total[said] = total.get(said, 0.0) + probability
        expected.append(list(max(total, key=total.__getitem__)))
    assert ctc_prefix_beam(scores, lens, beams=200) == expected
    assert ctc_greedy(scores, lens) != expected


def test_head_has_as_many_linear_layers_as_asked() -> None:
    head = CtcHead(8, 5, layers=3)
    assert sum(isinstance(module, torch.nn.Linear) for module in head.modules()) == 3
    torch.testing.assert_close(head(torch.randn(2, 3, 8)).exp().sum(-1), torch.ones(2, 3))


def test_ctc_on_embeddings_is_the_sum_over_all_paths() -> None:
    vectors, units, target = torch.randn(4, 3), torch.randn(3, 3), (2, 2)
    frames = (EMBEDDING_SCALE * vectors @ units.T).softmax(-1).tolist()
    probability = 0.0
    for path in product(range(3), repeat=4):
        if tuple(unit for unit, _ in groupby(path) if unit) == target:
            probability += math.prod(frame[unit] for frame, unit in zip(frames, path, strict=True))
    assert embedding_ctc(vectors[None], torch.tensor([4]), units, [target]).item() == pytest.approx(
        -math.log(probability) / 2, rel=1e-4
    )


def test_ctc_on_embeddings_of_a_batch_is_that_of_each_alone() -> None:
    units = torch.randn(5, 8)
    vectors = [0.1 * torch.randn(length, 8) for length in (9, 4, 3, 2)]
    targets = [[1, 3, 3, 2], [2], [], [4, 4]]  # the last needs three vectors and has two
    alone = [
        embedding_ctc(one[None], torch.tensor([len(one)]), units, [target]).item() * len(target)
        for one, target in zip(vectors[:2], targets, strict=False)
    ]
    silent = -(EMBEDDING_SCALE * vectors[2] @ units.T).log_softmax(-1)[:, 0].sum().item()
    lens = torch.tensor([len(one) for one in vectors])
    together = embedding_ctc(torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True), lens, units, targets).item() * 7
    assert together == pytest.approx(sum(alone) + silent, rel=1e-4)


def test_ctc_on_embeddings_moves_the_vectors_alone() -> None:
    vectors, units = torch.randn(6, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    embedding_ctc(vectors[None], torch.tensor([6]), units, [[2, 1]]).backward()
    assert vectors.grad.abs().sum() > 0 and units.grad is None
