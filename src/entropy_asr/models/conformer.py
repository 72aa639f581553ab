"""Conformer encoder (Gulati et al., 2020) with 4x convolutional downsampling and rotary self-attention.

What an utterance gives does not depend on its batch.  So there is no batch normalisation (the convolution module takes LayerNorm,
as FireRedASR-AED does), and the blocks see the real frames of all utterances as one packed row: no padding is computed, attention
stays within an utterance, and the depthwise convolution finds zeros between two.  `tests/models/test_conformer.py` holds that.
Attention and the convolution module have no biases, as in FireRedASR-AED: a LayerNorm with its own stands beside each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropy_asr.config import Encoder
from entropy_asr.models.attention import attend
from entropy_asr.models.packing import Packing, put, take, to_device


def length_mask(lengths: Tensor, max_length: int, device: torch.device | None = None) -> Tensor:
    """True where a frame is real. lengths: (N,) int; returns (N, max_length) bool, on a device or where the lengths are."""
    lengths = lengths if device is None else to_device(lengths.cpu().numpy(), device)
    return torch.arange(max_length, device=lengths.device)[None, :] < lengths[:, None]


class ConvSubsampling(nn.Module):
    """Two 3x3 convolutions of stride 2: 100 frames a second become 25.

    Without padding, so that output frame t depends on input frames 4t to 4t+6 alone: the frames of an utterance never see
    the padding behind it.
    """

    def __init__(self, num_mel_bins: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(1, channels, 3, 2), nn.Conv2d(channels, channels, 3, 2)])
        self.linear = nn.Linear(channels * subsampled_length(num_mel_bins), width)

    def forward(self, features: Tensor) -> Tensor:
        """features: (N, T, num_mel_bins); returns (N, subsampled_length(T), width)."""
        # With the channels last in memory, forward and backward take half the time on a CPU.
        x = features.unsqueeze(1).to(memory_format=torch.channels_last)
        for conv in self.conv:
            x = F.relu(conv(x), inplace=True)  # (N, C, T', F')
        return self.linear(x.permute(0, 2, 3, 1).flatten(2))  # as it lies in memory, so without a copy


def subsampled_length(length):
    """Frames after ConvSubsampling; for an int or an integer tensor. At least 7 input frames give one."""
    return ((length - 1) // 2 - 1) // 2


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al., 2021): cosines and signed sines, each (T, head_dim), for :func:`rotate`."""

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        inverse = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("inverse_frequency", inverse, persistent=False)

    def forward(self, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        angle = torch.outer(torch.arange(length, device=self.inverse_frequency.device).float(), self.inverse_frequency.float())
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) by its angle. x: (…, head_dim); cos, signed_sin: as x, or to be broadcast."""
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), signed_sin)


class SelfAttention(nn.Module):
    """Multi-head self-attention of each utterance's frames."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, frames: "Frames") -> Tensor:
        """x: (total, D)."""
        qkv = self.qkv(x).view(-1, 3, self.heads, self.head_dim)
        query, key = rotate(qkv[:, :2], frames.cos, frames.signed_sin).unbind(1)
        return self.out(attend(query, key, qkv[:, 2], frames.packing).flatten(1))


class FeedForward(nn.Sequential):
    """Half-step feed-forward module."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Each channel's convolution over time, as many frames as before.

    As an image of height 1, whose channels already come last, it runs up to three times as fast on a CPU as `F.conv1d`.

    Args:
        x: (T, D); weight: (D, 1, kernel), kernel odd.
    """
    image = x.T[None, :, None]
    image = F.conv2d(image, weight.unsqueeze(2), padding=(0, weight.size(-1) // 2), groups=x.size(-1))
    return image[0, :, 0].T


class ConvModule(nn.Module):
    """Pointwise GLU, depthwise convolution over time, pointwise."""

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.pointwise_in = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.norm_out = nn.LayerNorm(width)
        self.pointwise_out = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: "Frames") -> Tensor:
        """x: (total, D)."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        x = depthwise_conv(put(x, frames.spaced, frames.spaced_length), self.depthwise.weight).index_select(0, frames.spaced)
        return self.dropout(self.pointwise_out(F.silu(self.norm_out(x))))


@dataclass(frozen=True)
class Frames:
    """Where the frames of a batch lie, the same for all blocks.

    cos, signed_sin: (total, 1, 1, head_dim), of :class:`RotaryEmbedding`.
    spaced: (total,) places where half a convolution kernel of zeros lies between two utterances; spaced_length: of that row.
    """

    packing: Packing
    cos: Tensor
    signed_sin: Tensor
    spaced: Tensor
    spaced_length: int


class ConformerBlock(nn.Module):
    """Half feed-forward, self-attention, convolution, half feed-forward, LayerNorm."""

    def __init__(self, config: Encoder) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(config.width, config.feed_forward, config.dropout)
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.conv = ConvModule(config.width, config.conv_kernel, config.dropout)
        self.feed_forward_out = FeedForward(config.width, config.feed_forward, config.dropout)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """x: (total, width)."""
        x = torch.add(x, self.feed_forward_in(x), alpha=0.5)
        x = x + self.dropout(self.attention(self.attention_norm(x), frames))
        x = x + self.conv(x, frames)
        x = torch.add(x, self.feed_forward_out(x), alpha=0.5)
        return self.norm(x)


class ConformerEncoder(nn.Module):
    """Log-Mel features in, 25 frames a second out.

    The global mean and variance of the features are buffers: an encoder file is complete without another artifact.
    """

    def __init__(self, config: Encoder, num_mel_bins: int = 80) -> None:
        super().__init__()
        self.config = config
        self.num_mel_bins = num_mel_bins
        self.register_buffer("feature_mean", torch.zeros(num_mel_bins))
        self.register_buffer("feature_std", torch.ones(num_mel_bins))
        self.subsampling = ConvSubsampling(num_mel_bins, config.subsampling_channels, config.width)
        self.rotary = RotaryEmbedding(config.width // config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ConformerBlock(config) for _ in range(config.layers))
        self.checkpoint_activations = False
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Let the signal through from the first step [O].

        With torch's defaults the biases of the convolutions outweigh what varies over time: 94% of the output's root mean
        square was one constant vector, and CTC took twice as many steps to leave its all-blank phase.  So: He et al. (2015)
        for the convolutions, no biases, and residual branches that start at zero (Goyal et al., 2017; Zhang et al., 2019).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.xavier_normal_(self.subsampling.linear.weight)
        for layer in self.layers:
            last = (layer.feed_forward_in[-2], layer.attention.out, layer.conv.pointwise_out, layer.feed_forward_out[-2])
            for linear in last:
                nn.init.zeros_(linear.weight)

    def normalise(self, features: Tensor) -> Tensor:
        """Global mean and variance normalisation."""
        return (features - self.feature_mean) / self.feature_std

    def frames(self, lens: Sequence[int], device: torch.device, dtype: torch.dtype) -> Frames:
        """Of utterances of so many output frames."""
        packing, gap = Packing.of(lens, device), self.config.conv_kernel // 2
        cos, signed_sin = (x[packing.positions][:, None, None] for x in self.rotary(packing.longest, dtype))
        return Frames(packing, cos, signed_sin, packing.spaced(gap), packing.total + gap * (len(packing.lens) - 1))

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features: (N, T, num_mel_bins) log-Mel.
            feature_lens: (N,) frames of each utterance, at least 7; on the CPU, else the GPU is waited for.

        Returns:
            encoder_out (N, T', width), zero on padding, and encoder_out_lens (N,), T' = subsampled_length(T), on the CPU.
        """
        lens = subsampled_length(feature_lens.cpu())
        features = self.normalise(features).to(self.subsampling.linear.weight.dtype)
        x = self.subsampling(features)
        n, longest = x.shape[:2]
        frames = self.frames(lens.tolist(), x.device, x.dtype)
        places = frames.packing.padded(longest)
        x = self.dropout(take(x, places))
        for layer in self.layers:
            if self.checkpoint_activations and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, frames, use_reentrant=False)
            else:
                x = layer(x, frames)
        return put(x, places, n * longest).view(n, longest, -1), lens
