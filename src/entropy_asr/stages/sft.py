"""What alignment, IA-SFT and joint SFT share: transcripts as targets, one loop, one artifact.

A stage is which modules train, from which files they start, for how long; those lines are in the stage's own script.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from entropy_asr.audio.batches import Batch, TrainingBatches, read_cuts, validation_batches
from entropy_asr.config import Schedule
from entropy_asr.errors import InputError
from entropy_asr.models.artifacts import save_system
from entropy_asr.models.conformer import subsampled_length
from entropy_asr.models.ctc import embedding_ctc
from entropy_asr.models.flops import encoder_flops, llm_flops
from entropy_asr.models.speech_llm import SpeechLLM, checkpoint_layers
from entropy_asr.provenance import Provenance
from entropy_asr.text.phonemes import LINE_BLANK, as_line
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine, freeze
from entropy_asr.training.loop import Trainer
from entropy_asr.training.state import RunningState
from entropy_asr.training.validation import Validation


class TranscriptLoss(nn.Module):
    """The speech-LLM with its mean negative log-likelihood, in nats a transcript token, as forward."""

    def __init__(self, system: SpeechLLM) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, tokens = self.system(batch.features, batch.feature_lens, batch.targets)
        return loss / tokens, {}

    def flops(self, batch: Batch) -> float:
        """Of forward and backward on the batch's real frames and tokens, by what trains."""
        encoder, llm = self.system.encoder, self.system.llm
        encoder_passes = 3 if next(encoder.parameters()).requires_grad else 1
        llm_passes = 3 if next(llm.parameters()).requires_grad else 2
        prompt = len(self.system.prompt.before) + len(self.system.prompt.after)
        frames, tokens = batch.feature_lens.numpy(), np.array([len(ids) for ids in batch.targets])
        speech = self.system.adaptor.output_length(subsampled_length(frames))
        heard = encoder_passes * encoder_flops(encoder.config, encoder.num_mel_bins, frames).sum()
        return float(heard + llm_passes * llm_flops(llm.config, prompt + speech + tokens, tokens + 1).sum())


class AlignmentLoss(TranscriptLoss):
    """The transcript's loss, and CTC of the adaptor's outputs on the LLM's own embeddings of how the utterance sounds [O].

    The small LM is trained to read pronunciations, a token a phoneme and blanks between them.  The transcript's loss alone finds
    that out slowly: it lies still for most of a short alignment.  The CTC says it.
    """

    def __init__(self, system: SpeechLLM, weight: float, spoken: dict[str, list[int]], blank: int) -> None:
        """spoken: token ids of each utterance's pronunciation; blank: the token of no phoneme."""
        super().__init__(system)
        self.weight = weight
        units = [blank, *sorted({token for tokens in spoken.values() for token in tokens} - {blank})]
        self.register_buffer("units", torch.tensor(units), persistent=False)
        row = {token: i for i, token in enumerate(units)}
        self.spoken = {name: [row[token] for token in tokens] for name, tokens in spoken.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        speech, lens = self.system.speech_embeddings(batch.features, batch.feature_lens)
        logits, labels = self.system.answer_logits(speech, lens, batch.targets)
        # Utterances that were replaced by audio without speech have an empty transcript.
        said = [self.spoken[name] if target else [] for name, target in zip(batch.ids, batch.targets, strict=True)]
        units = self.system.llm.get_input_embeddings().weight.index_select(0, self.units)
        ctc = embedding_ctc(speech, lens, units, said)
        transcript = F.cross_entropy(logits, labels)
        return transcript + self.weight * ctc, {"transcript_loss": transcript.detach(), "pronunciation_ctc": ctc.detach()}


@dataclass(frozen=True)
class Transcripts:
    """An utterance's transcript as token ids."""

    tokenizer: Tokenizer

    def __call__(self, cut: Cut) -> list[int]:
        return self.tokenizer.encode(cut.supervisions[0].custom["normalized"], add_special_tokens=False).ids


def pronunciations(cuts: CutSet, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Token ids of each utterance as it sounds, as `stages.text_batches` tells it to the small LM."""
    encode = tokenizer.backend_tokenizer.encode
    said = ((cut.id, cut.supervisions[0].custom["phonemes"]) for cut in cuts)
    return {name: encode(" " + as_line(phonemes), add_special_tokens=False).ids for name, phonemes in said}


def llm_positions(frames: int, tokens: int, prompt: int, stride: int) -> int:
    """Positions that an utterance takes in the LLM: prompt, speech, transcript and its end."""
    return prompt + -(-max(0, subsampled_length(frames)) // stride) + tokens + 1


def data_seed(seed: int, stage: str) -> int:
    """Seed of the order of the data and of its augmentation: another one in each stage and each iteration of IA-SFT.

    At a small scale these are shorter than an epoch. With one seed all of them would meet the same first utterances, augmented
    alike, and an arm with more stages would see less of the data in as many steps.
    """
    return zlib.crc32(f"{seed}/{stage}".encode())


def prepare(system: SpeechLLM, trained: Sequence[str], checkpointing: bool) -> None:
    """Freeze the modules that are not named, and switch checkpointing of activations on, if asked to."""
    for name in ("encoder", "adaptor", "llm"):
        if name not in trained:
            freeze(getattr(system, name))
    if checkpointing:
        system.encoder.checkpoint_activations = True
        checkpoint_layers(system.llm)


def train_system(
    stage: str,
    system: SpeechLLM,
    tokenizer: PreTrainedTokenizerBase,
    trained: tuple[str, ...],
    schedule: Schedule,
    settings: SimpleNamespace,
    train: Sequence[Path],
    dev: Sequence[Path],
    provenance: Provenance,
    running: Path,
    out: Path,
    seed: int,
    facts: dict,
    lr_scales: dict[str, float] | None = None,
    saved: tuple[str, ...] | None = None,
    ctc_weight: float = 0.0,
) -> None:
    """Train the named modules (of encoder, adaptor, llm) of a system, the others frozen, and write the trained ones.

    Args:
        stage: its name, with the number of the iteration; for messages and :func:`data_seed`.
        schedule: steps and learning rates of this stage.
        settings: the stage's sections; features, augment, prompt and engine are read here.
        dev: manifests for the validation loss, of the transcript alone; none: it is not measured.
        facts: what the stage adds to the provenance.
        lr_scales: learning-rate factor by prefix of parameter name.
        saved: modules to write, where they are not the trained ones.
        ctc_weight: of `AlignmentLoss`; 0: the transcript's loss alone.
    """
    prepare(system, trained, settings.engine.activation_checkpointing)
    device = distributed.start()
    cuts, target = read_cuts(list(train)), Transcripts(tokenizer.backend_tokenizer)
    batches = TrainingBatches(
        cuts,
        target=target,
        fill=system.encoder.feature_mean.numpy(),
        features=settings.features,
        augment=settings.augment,
        copies=1,
        max_duration=schedule.max_duration,
        buckets=settings.engine.buckets,
        seed=data_seed(seed, stage),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        empty_fraction=settings.augment.empty_fraction,
        positions=partial(
            llm_positions,
            prompt=len(system.prompt.before) + len(system.prompt.after),
            stride=system.adaptor.config.stride,
        ),
        waveforms=device.type == "cuda",
    )
    torch.manual_seed(seed * 1000 + distributed.rank())
    if ctc_weight:
        blank, *more = tokenizer.backend_tokenizer.encode(f" {LINE_BLANK}", add_special_tokens=False).ids
        if more:
            raise InputError(
                f"align.ctc_weight is {ctc_weight:g}, but the LLM's tokenizer has no unit for the blank of a pronunciation, "
                f"' {LINE_BLANK}'; raise llm.scratch.vocab_size, or set align.ctc_weight: 0"
            )
        loss = AlignmentLoss(system, ctc_weight, pronunciations(cuts, tokenizer), blank)
    else:
        loss = TranscriptLoss(system)
    # In bf16 the engine rounds frozen weights, too; what is saved of them is as it came.
    frozen = [name for name in saved or () if name not in trained and distributed.rank() == 0]
    kept = {name: copy.deepcopy(getattr(system, name)) for name in frozen}
    engine = Engine(loss, schedule, settings.engine, device, lr_scales)
    held_out = validation_batches(
        read_cuts(list(dev)), target, settings.features, settings.engine.validate_utterances, schedule.max_duration
    )
    validation = Validation(TranscriptLoss(system), held_out, device) if held_out else None
    state = RunningState(running, provenance.key)
    trainer = Trainer(engine, batches, state, out / "train.jsonl", stage, validation=validation)
    trainer.resume()
    trainer.run()
    engine.restore_full_precision()
    if distributed.rank() == 0:
        for name, module in kept.items():
            setattr(system, name, module)
        save_system(out, system, tokenizer, settings.prompt, saved or trained)
        provenance.write(
            out / "provenance.json",
            seed=seed,
            trained=list(trained),
            parameters={
                name: sum(p.numel() for p in getattr(system, name).parameters()) for name in ("encoder", "adaptor", "llm")
            },
            **trainer.cost(),
            **facts,
        )
        trainer.state.clear()
    distributed.stop()
