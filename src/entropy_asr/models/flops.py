"""FLOPs of the models, from their shapes: what planning and model FLOP utilisation count.

Matrix products and convolutions of real frames and tokens, none of padding; norms, activations, adaptor and CTC head are
left out.  Lengths may be arrays, of one utterance each.  A backward pass costs twice the forward where weights learn, once
where gradients only pass through.
`tests/models/test_flops.py` compares with torch's counter.
"""

import time

import torch

from entropy_asr.config import Encoder as EncoderConfig
from entropy_asr.models.aed import AttentionDecoder
from entropy_asr.models.conformer import subsampled_length


def encoder_flops(config: EncoderConfig, num_mel_bins: int, frames: int) -> float:
    """Forward FLOPs of one utterance of so many input frames (10 ms): matrix products and convolutions."""

    def halved(n: int) -> int:
        return (n - 1) // 2

    c, d, f, k = config.subsampling_channels, config.width, config.feed_forward, config.conv_kernel
    t, bins = subsampled_length(frames), subsampled_length(num_mel_bins)
    macs = 9 * c * halved(frames) * halved(num_mel_bins) + 9 * c * c * t * bins + t * c * bins * d
    layer = 4 * d * f + 4 * d * d + 3 * d * d + k * d  # two feed-forwards, attention's projections, convolution module
    macs += config.layers * t * (layer + 2 * t * d)
    return 2.0 * macs


def decoder_flops(decoder: AttentionDecoder, frames: int, units: int) -> float:
    """Forward FLOPs of the attention decoder for one utterance of so many encoder frames and text units."""
    d, f = decoder.width, decoder.feed_forward
    projections = units * 6 * d * d + frames * 2 * d * d  # keys and values of the second attention are the frames'
    layer = projections + units * (2 * d * f + 2 * (units + frames) * d)
    return 2.0 * (len(decoder.layers) * layer + units * d * decoder.vocab_size)


def llm_flops(llm, tokens: float, answers: float) -> float:
    """Forward FLOPs of one row: its tokens through the layers, its answers through the LM head."""
    d, q, kv = llm.hidden_size, llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim
    layer = d * (2 * q + 2 * kv) + 3 * d * llm.intermediate_size + 2 * tokens * q
    return 2.0 * (llm.num_hidden_layers * tokens * layer + answers * d * llm.vocab_size)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product here and now: the best of some tries, with all threads of this process."""
    size = 8192 if device.type == "cuda" else 1024
    x = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        x @ x
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
