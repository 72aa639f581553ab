"""The conventional baseline: an attention decoder that writes the transcript, and pulls the encoder towards text (LAS, 2016).

A Transformer decoder (Vaswani et al., 2017) attends to the encoder's frames and predicts the next text unit; the loss is the
mean cross-entropy of the transcript and its end.  It serves encoder pretraining alone: what goes on to the LLM is the encoder.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropy_asr.models.conformer import length_mask
from entropy_asr.models.packing import padded

IGNORED = -100


class AttentionDecoder(nn.Module):
    """Text units before, encoder frames → scores of the next text unit.

    Args:
        width, heads, feed_forward: as the encoder's.
        sos_eos: the unit that begins and ends every transcript.
    """

    def __init__(
        self, width: int, heads: int, feed_forward: int, layers: int, vocab_size: int, sos_eos: int, dropout: float
    ) -> None:
        super().__init__()
        self.width, self.feed_forward, self.vocab_size, self.sos_eos = width, feed_forward, vocab_size, sos_eos
        self.embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # times sqrt(width) in forward: as large as the positions
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, feed_forward, dropout, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, previous: Tensor, encoder_out: Tensor, encoder_out_lens: Tensor) -> Tensor:
        """Scores of the unit that follows each one.

        Args:
            previous: (N, S) unit ids, the first `sos_eos`; behind an utterance's end anything, which nothing before it sees.
            encoder_out: (N, T, width); encoder_out_lens: (N,).

        Returns:
            (N, S, vocab_size) float32, before the softmax.
        """
        x = self.embedding(previous) * self.width**0.5
        x = self.dropout(x + sinusoids(previous.size(1), self.width, x.device).to(x.dtype))
        later = torch.ones(previous.size(1), previous.size(1), dtype=torch.bool, device=x.device).triu(1)
        padding = ~length_mask(encoder_out_lens, encoder_out.size(1), encoder_out.device)
        for layer in self.layers:
            x = layer(x, encoder_out, tgt_mask=later, memory_key_padding_mask=padding)
        return F.linear(self.norm(x), self.embedding.weight).float()  # embeddings tied to the output (Press and Wolf, 2017)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Absolute positions, (length, width) float32 (Vaswani et al., 2017, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angle = torch.outer(torch.arange(length, device=device).float(), rate)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def aed_loss(
    decoder: AttentionDecoder, encoder_out: Tensor, lens: Tensor, targets: list[list[int]], label_smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy a unit, teacher-forced, the end of each transcript counted.

    Args:
        encoder_out: (N, T, width); lens: (N,).
        targets: N lists of unit ids.

    Returns:
        loss in nats a unit, with label smoothing; and its part `cross_entropy`, without.
    """
    device = encoder_out.device
    previous = padded([[decoder.sos_eos, *ids] for ids in targets], decoder.sos_eos, device)
    labels = padded([[*ids, decoder.sos_eos] for ids in targets], IGNORED, device)
    scores, labels = decoder(previous, encoder_out, lens).flatten(0, 1), labels.flatten()
    loss = F.cross_entropy(scores, labels, ignore_index=IGNORED, label_smoothing=label_smoothing)
    plain = F.cross_entropy(scores.detach(), labels, ignore_index=IGNORED)
    return loss, {"cross_entropy": plain}
