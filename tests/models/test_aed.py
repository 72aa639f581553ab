"""The attention decoder: it looks neither ahead nor at padding, its loss has known answers, it learns to read its encoder."""

import math

import pytest
import torch

from entropy_asr.models.aed import AttentionDecoder, aed_loss, sinusoids

WIDTH, UNITS, END = 16, 7, 2


@pytest.fixture
def decoder() -> AttentionDecoder:
    torch.manual_seed(0)
    return AttentionDecoder(WIDTH, heads=2, feed_forward=32, layers=2, vocab_size=UNITS, sos_eos=END, dropout=0.0).eval()


def test_a_score_depends_on_the_units_before_it_alone(decoder: AttentionDecoder) -> None:
    frames, lens = torch.randn(1, 5, WIDTH), torch.tensor([5])
    one = decoder(torch.tensor([[END, 3, 4, 5]]), frames, lens)
    other = decoder(torch.tensor([[END, 3, 6, 1]]), frames, lens)
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert (one[:, 2] - other[:, 2]).abs().max() > 1e-3


def test_a_loss_does_not_depend_on_the_batch(decoder: AttentionDecoder) -> None:
    frames, lens = torch.randn(2, 9, WIDTH), torch.tensor([9, 4])
    targets = [[3, 4, 5, 6], [4, 1]]
    frames[1, 4:] = 100.0
    together, _ = aed_loss(decoder, frames, lens, targets, 0.1)
    alone = [aed_loss(decoder, frames[i : i + 1, :n], lens[i : i + 1], [targets[i]], 0.1)[0] for i, n in enumerate((9, 4))]
    assert together.item() == pytest.approx((5 * alone[0] + 3 * alone[1]).item() / 8, rel=1e-5)  # ends are counted


def test_a_decoder_that_knows_nothing_costs_the_logarithm_of_the_units(decoder: AttentionDecoder) -> None:
    torch.nn.init.zeros_(decoder.embedding.weight)
    loss, parts = aed_loss(decoder, torch.randn(1, 5, WIDTH), torch.tensor([5]), [[3, 4]], 0.1)
    assert loss.item() == pytest.approx(math.log(UNITS)) and parts["cross_entropy"].item() == pytest.approx(math.log(UNITS))


def test_it_learns_to_read_its_encoder(decoder: AttentionDecoder) -> None:
    torch.manual_seed(0)
    code = torch.randn(UNITS, WIDTH)
    optimiser = torch.optim.Adam(decoder.train().parameters(), lr=1e-2)

    def batch() -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        targets = [torch.randint(3, UNITS, (n,)).tolist() for n in (3, 5, 4, 2, 1, 5)]
        frames = torch.nn.utils.rnn.pad_sequence([code[ids] for ids in targets], batch_first=True)
        frames = frames + sinusoids(5, WIDTH, frames.device)  # an encoder's frames say where they are
        return frames, torch.tensor([len(ids) for ids in targets]), targets

    for _ in range(200):
        optimiser.zero_grad()
        aed_loss(decoder, *batch(), 0.0)[0].backward()
        optimiser.step()
    frames, lens, targets = batch()
    assert aed_loss(decoder, frames, lens, targets, 0.0)[0].item() < 0.3
    blind, _ = aed_loss(decoder, torch.zeros_like(frames), lens, targets, 0.0)
    assert blind.item() > 1.0  # what it wrote, it had heard: no language model could know it
