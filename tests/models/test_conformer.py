"""The encoder: masked means absent, lengths are right, the parameter count is the paper's."""

import pytest
import torch

from entropy_asr.config import Encoder
from entropy_asr.models.conformer import ConformerEncoder, RotaryEmbedding, depthwise_conv, length_mask, rotate, subsampled_length

SMALL = Encoder(width=32, layers=2, heads=2, feed_forward=64, conv_kernel=7, subsampling_channels=4, dropout=0.1)


@pytest.fixture
def encoder() -> ConformerEncoder:
    torch.manual_seed(0)
    return ConformerEncoder(SMALL, num_mel_bins=80).eval()


@pytest.mark.parametrize("filler", [0.0, 1e3, float("nan")])
def test_padding_is_absent(encoder: ConformerEncoder, filler: float) -> None:
    lens = torch.tensor([7, 64, 120, 33])
    features = torch.randn(4, 160, 80).masked_fill(~length_mask(lens, 160)[:, :, None], filler)
    batched, out_lens = encoder(features, lens)
    for i, length in enumerate(lens.tolist()):
        alone, alone_lens = encoder(features[i : i + 1, :length], lens[i : i + 1])
        assert alone_lens.item() == out_lens[i].item() == alone.size(1)
        torch.testing.assert_close(batched[i, : alone.size(1)], alone[0], atol=2e-5, rtol=1e-4)
        assert (batched[i, alone.size(1) :] == 0).all()


def test_gradients_do_not_reach_padding(encoder: ConformerEncoder) -> None:
    features = torch.randn(2, 100, 80, requires_grad=True)
    encoder(features, torch.tensor([100, 40]))[0].sum().backward()
    assert features.grad[1, 40:].abs().max() == 0
    assert features.grad[1, :36].abs().max() > 0


def test_four_times_fewer_frames() -> None:
    assert subsampled_length(7) == 1
    assert subsampled_length(6) == 0
    assert 24 <= subsampled_length(100) <= 25
    assert subsampled_length(torch.tensor([7, 100])).tolist() == [subsampled_length(7), subsampled_length(100)]


def test_order_matters(encoder: ConformerEncoder) -> None:
    features = torch.randn(1, 80, 80)
    forward, _ = encoder(features, torch.tensor([80]))
    backward, _ = encoder(features.flip(1), torch.tensor([80]))
    assert (forward - backward.flip(1)).abs().max() > 1e-2


def test_paper_scale_is_600_million_parameters() -> None:
    with torch.device("meta"):
        encoder = ConformerEncoder(Encoder())
    assert 0.55e9 < sum(p.numel() for p in encoder.parameters()) < 0.65e9


def test_depthwise_convolution_is_the_one_over_time() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((20, 8), (8, 1, 5)))
    expected = torch.nn.functional.conv1d(x.T[None], weight, padding=2, groups=8)[0].T
    torch.testing.assert_close(depthwise_conv(x, weight), expected)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(16, generator=generator) for _ in range(2))
    rotary = RotaryEmbedding(16)(40)
    queries, keys = (rotate(x.expand(40, 16), *rotary) for x in (query, key))
    products = queries @ keys.T
    torch.testing.assert_close(products[5, 2], products[37, 34])
    assert products[5, 2] != pytest.approx(products[2, 5].item(), abs=1e-3)
    torch.testing.assert_close(products[7, 7], query @ key)
