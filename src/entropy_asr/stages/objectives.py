"""What encoder pretraining learns: phonemes or characters by CR-CTC, or characters by an attention decoder.

The three kinds share data, augmentation, two differently masked copies of each utterance, optimiser, steps, parts and CKA
monitor (`stages.pretrain`); what differs is here, the labels of an utterance and the head on the encoder.  So an encoder of
one kind has had the same budget as one of another.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from tokenizers import Tokenizer
from torch import Tensor, nn

from entropy_asr.audio.batches import Batch
from entropy_asr.config import Objective
from entropy_asr.corpora.quality import ctc_frames_needed, encoder_frames
from entropy_asr.errors import InputError
from entropy_asr.models.aed import AttentionDecoder, aed_loss
from entropy_asr.models.conformer import ConformerEncoder, subsampled_length
from entropy_asr.models.ctc import CtcHead, cr_ctc_loss
from entropy_asr.models.flops import decoder_flops, encoder_flops


class Labels(NamedTuple):
    """names: of the labels, in their order; encode: an utterance's labels."""

    names: list[str]
    encode: Callable[[Cut], list[int]]


def read_labels(objective: Objective, path: Path) -> Labels:
    """The labels of a kind of pretraining. path: tokens.txt of phonemes, else tokenizer.json of the text units.

    Raises:
        InputError: the file is missing or of the other kind.
    """
    if objective == "phoneme":
        from entropy_asr.text.phonemes import read_tokens

        ids = read_tokens(path)
        return Labels(sorted(ids, key=ids.__getitem__), partial(_phoneme_ids, ids))
    from entropy_asr.text.units import read_units

    units = read_units(path)
    vocabulary = units.get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    return Labels(names, partial(_unit_ids, units))


# Functions with a name, because loading processes may get them by pickle.
def _phoneme_ids(ids: dict[str, int], cut: Cut) -> list[int]:
    return [ids[name] for name in cut.supervisions[0].custom["phonemes"]]


def _unit_ids(units: Tokenizer, cut: Cut) -> list[int]:
    from entropy_asr.text.units import encode_text

    return encode_text(units, cut.supervisions[0].custom["normalized"])


def check_ctc_fits(cuts: CutSet, labels: Labels, max_speed: float) -> None:
    """Every utterance must have a CTC path, sped up too; for phonemes the manifests hold this already.

    Raises:
        InputError: one has more labels than frames, and its loss would be infinite.
    """
    short = []
    for cut in cuts:
        frames, needed = encoder_frames(cut.duration / max_speed), ctc_frames_needed(labels.encode(cut))
        if frames < needed:
            short.append(f"{cut.id}: {frames} frames, needs {needed}")
    if short:
        raise InputError(
            f"{len(short)} training utterances have more text units than frames at {max_speed:g} times the speed, as {short[0]}; "
            "raise units.word_pieces, or exclude them from the corpus"
        )


class CrCtcModel(nn.Module):
    """Encoder and CTC head with the CR-CTC loss as forward."""

    def __init__(self, encoder: ConformerEncoder, head: CtcHead, alpha: float) -> None:
        super().__init__()
        self.encoder, self.head, self.alpha = encoder, head, alpha

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """batch.features: (2N, T, num_mel_bins), first copies first."""
        encoder_out, lens = self.encoder(batch.features, batch.feature_lens)
        targets = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in batch.targets], batch_first=True).to(encoder_out.device)
        target_lens = torch.tensor([len(ids) for ids in batch.targets], device=encoder_out.device)
        return cr_ctc_loss(self.head(encoder_out), lens, targets, target_lens, self.alpha)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward on the batch's real frames."""
        return 3 * _encoder_flops(self.encoder, batch)


class AedModel(nn.Module):
    """Encoder and attention decoder with the mean cross-entropy of both copies as forward."""

    def __init__(self, encoder: ConformerEncoder, head: AttentionDecoder, label_smoothing: float) -> None:
        super().__init__()
        self.encoder, self.head, self.label_smoothing = encoder, head, label_smoothing

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """batch.features: (2N, T, num_mel_bins), first copies first."""
        encoder_out, lens = self.encoder(batch.features, batch.feature_lens)
        return aed_loss(self.head, encoder_out, lens, 2 * batch.targets, self.label_smoothing)

    def flops(self, batch: Batch) -> float:
        """Of forward and backward on the batch's real frames and units."""
        decoder = 0.0
        for frames, ids in zip(batch.frame_counts, 2 * batch.targets, strict=True):
            decoder += decoder_flops(self.head, subsampled_length(frames), len(ids) + 1)
        return 3 * (_encoder_flops(self.encoder, batch) + decoder)


def _encoder_flops(encoder: ConformerEncoder, batch: Batch) -> float:
    return sum(encoder_flops(encoder.config, encoder.num_mel_bins, frames) for frames in batch.frame_counts)


def build(
    objective: Objective, encoder: ConformerEncoder, labels: Labels, settings: SimpleNamespace
) -> tuple[CrCtcModel | AedModel, dict[str, Any]]:
    """The model to train, and what the artifact's header says of its head."""
    if objective == "attention":
        from entropy_asr.text.units import SENTENCE_END

        sizes, sos_eos = settings.encoder, labels.names.index(SENTENCE_END)
        decoder = AttentionDecoder(
            sizes.width, sizes.heads, sizes.feed_forward, settings.aed.layers, len(labels.names), sos_eos, sizes.dropout
        )
        return AedModel(encoder, decoder, settings.aed.label_smoothing), {"decoder_layers": settings.aed.layers}
    head = CtcHead(encoder.config.width, len(labels.names), settings.ctc.head_layers)
    return CrCtcModel(encoder, head, settings.ctc.consistency), {"head_layers": settings.ctc.head_layers}
