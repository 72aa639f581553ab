"""Which utterances may be used, and what a split is made of.

Every utterance is decoded once, here, before any training: a broken file costs a line in ``<split>.excluded.jsonl``
now, or a run in the night. Nothing is dropped without its reason; a split that loses more than
``quality.max_excluded_fraction`` stops the run, because then the corpus is wrong and not the utterances.

Reasons, in the order in which they are looked for:

==========================  ==========================================================================================
``duplicate_id``            an earlier utterance has the id
``empty_transcript``        nothing is left of the text after normalisation
``duplicate_across_splits`` the sentence is also in a split held out for testing (or development, for training)
``no_pronunciation``        no word of it has phonemes
``wrong_phonemes``          the phonemes that the corpus gives are not in the inventory, or of more or fewer words
``missing_audio``           no such file
``unreadable_audio``        libsndfile cannot decode it
``segment_outside_audio``   the file ends before the utterance does (also: a file that was cut off)
``duration_below_min``      shorter than ``quality.min_duration``
``duration_above_max``      longer than ``quality.max_duration``
``non_finite_samples``      NaN or infinity
``silent_audio``            every sample is zero
``too_short_for_ctc``       fewer encoder frames than phonemes and the blanks between repeated ones, when sped up to
                            ``quality.max_speed``: no CTC path, an infinite loss in training
==========================  ==========================================================================================
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from entropy_asr.corpora.utterance import Utterance
from entropy_asr.errors import InputError
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import Pronunciation, as_said, phonemize
from entropy_asr.versions import NORMALIZER_VERSION, PHONEMES_VERSION

if TYPE_CHECKING:
    from entropy_asr.config import Quality

FRAME_SHIFT = 0.01  # seconds
_SEGMENT_TOLERANCE = 0.05  # seconds that a listed end may lie behind the file's: rounding, codec padding
_HISTOGRAM_EDGES = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30)  # seconds
_FIRST_FEW = 3


@dataclass(frozen=True)
class AudioFile:
    """What libsndfile says of a file: samples a second, samples, channels; and a hash of the utterance's samples."""

    sampling_rate: int
    num_samples: int
    channels: int
    sha256: str = ""

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_samples / self.sampling_rate


@dataclass(frozen=True)
class Accepted:
    """An utterance that passed, with what was computed on the way; ``duration`` in seconds, never None."""

    utterance: Utterance
    normalized: str
    pronunciation: Pronunciation
    audio: AudioFile
    duration: float


@dataclass(frozen=True)
class Excluded:
    """An utterance that did not, and why."""

    id: str
    reason: str
    detail: str


@dataclass
class SplitResult:
    """All of one split."""

    name: str
    accepted: list[Accepted] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)


def encoder_frames(duration: float) -> int:
    """Frames behind the 4x downsampling (25 Hz) of ``duration`` seconds; as ``models.conformer.subsampled_length``."""
    frames = int(duration / FRAME_SHIFT + 0.5)
    return max(0, ((frames - 1) // 2 - 1) // 2)


def ctc_frames_needed(labels: list[Any]) -> int:
    """Fewest frames of a CTC path: one a label, and a blank between two that are the same (Graves et al., 2006)."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))


def check(utterance: Utterance, quality: Quality) -> Accepted | Excluded:
    """Judge one utterance by itself: transcript, pronunciation, audio. Decodes the audio once."""

    def excluded(reason: str, detail: str) -> Excluded:
        return Excluded(utterance.id, reason, detail)

    normalized = normalize(utterance.text, utterance.language)
    if not normalized:
        return excluded("empty_transcript", f"text {utterance.text!r} has no word")
    pronunciation = phonemize(normalized, utterance.language)
    if not pronunciation.phonemes:
        return excluded("no_pronunciation", f"no phonemes for {normalized!r}")
    if utterance.phonemes is not None:
        try:
            pronunciation = as_said(pronunciation, utterance.phonemes)
        except InputError as error:
            return excluded("wrong_phonemes", str(error))
    found = _check_audio(utterance, quality)
    if isinstance(found, Excluded):
        return found
    audio, duration = found
    frames, needed = encoder_frames(duration / quality.max_speed), ctc_frames_needed(pronunciation.phonemes)
    if frames < needed:
        spoken = f"{duration:.2f} s at {quality.max_speed:g} times the speed"
        return excluded("too_short_for_ctc", f"{spoken} give {frames} frames at 25 Hz, phonemes need {needed}")
    return Accepted(utterance, normalized, pronunciation, audio, duration)


def _check_audio(utterance: Utterance, quality: Quality) -> tuple[AudioFile, float] | Excluded:
    """The file's facts and the utterance's duration in seconds, or what is wrong with the audio."""
    import numpy as np
    import soundfile

    def excluded(reason: str, detail: str) -> Excluded:
        return Excluded(utterance.id, reason, detail)

    if not utterance.audio.is_file():
        return excluded("missing_audio", f"{utterance.audio}: no such file")
    try:
        with soundfile.SoundFile(utterance.audio) as file:
            audio = AudioFile(file.samplerate, file.frames, file.channels)
            rest = audio.duration - utterance.offset
            duration = rest if utterance.duration is None else min(utterance.duration, rest)
            if utterance.offset < 0 or duration <= 0 or rest + _SEGMENT_TOLERANCE < (utterance.duration or 0):
                ends = "the end" if utterance.duration is None else f"{utterance.offset + utterance.duration:.2f} s"
                return excluded("segment_outside_audio", f"{utterance.offset:.2f} s to {ends} of {audio.duration:.2f} s")
            if duration < quality.min_duration:
                return excluded("duration_below_min", f"{duration:.2f} s, least is {quality.min_duration} s")
            if duration > quality.max_duration:
                return excluded("duration_above_max", f"{duration:.2f} s, most is {quality.max_duration} s")
            file.seek(round(utterance.offset * audio.sampling_rate))
            wanted = round(duration * audio.sampling_rate)
            samples = file.read(wanted, dtype="float32", always_2d=True)[:, 0]
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return excluded("unreadable_audio", f"{utterance.audio}: {error}")
    if len(samples) < wanted - _SEGMENT_TOLERANCE * audio.sampling_rate:
        return excluded("unreadable_audio", f"{utterance.audio}: {len(samples)} of {wanted} samples decode")
    if not np.isfinite(samples).all():
        return excluded("non_finite_samples", f"{int((~np.isfinite(samples)).sum())} of {len(samples)} samples")
    if not samples.any():
        return excluded("silent_audio", f"all {len(samples)} samples are zero")
    return replace(audio, sha256=hashlib.sha256(samples.tobytes()).hexdigest()[:16]), duration


def held_out_rank(split: str) -> int:
    """2 for a test split, 1 for development, 0 for training, by its name: who keeps a sentence that both have."""
    name = split.lower()
    if "train" in name:
        return 0
    return 1 if "dev" in name or "valid" in name else 2


def exclude_duplicates(splits: list[SplitResult]) -> dict[str, dict[str, int]]:
    """Take sentences of held-out splits out of the splits that would leak them; ids must differ too.

    Changes ``splits`` in place. Returns for each split the sentences it shared with each other split.
    """
    sentences = {split.name: {item.normalized for item in split.accepted} for split in splits}
    shared = {
        name: {other: len(own & theirs) for other, theirs in sentences.items() if other != name and own & theirs}
        for name, own in sentences.items()
    }
    for split in splits:
        above = [name for name in sentences if held_out_rank(name) > held_out_rank(split.name)]
        kept = []
        for item in split.accepted:
            other = next((name for name in above if item.normalized in sentences[name]), None)
            if other is None:
                kept.append(item)
            else:
                detail = f"{item.normalized!r} is also in {other}"
                split.excluded.append(Excluded(item.utterance.id, "duplicate_across_splits", detail))
        split.accepted = kept
    return shared


def enforce_limit(split: SplitResult, quality: Quality) -> None:
    """Raise :class:`InputError` where too much of a split is bad, or all of it."""
    total = len(split.accepted) + len(split.excluded)
    allowed = quality.max_excluded_fraction
    if split.accepted and len(split.excluded) <= allowed * total:
        return
    few = "; ".join(f"{item.id}: {item.reason} ({item.detail})" for item in split.excluded[:_FIRST_FEW])
    raise InputError(
        f"split {split.name}: {len(split.excluded)} of {total} utterances cannot be used, "
        f"quality.max_excluded_fraction is {allowed}: {few or 'the split is empty'}. "
        "Mend the corpus, or raise the limit; all of them are in the split's .excluded.jsonl"
    )


def report(split: SplitResult, shared: dict[str, int]) -> dict[str, Any]:
    """The split's quality report: durations in hours or seconds as named, counts elsewhere."""
    durations = [item.duration for item in split.accepted]
    unpronounced = Counter(word for item in split.accepted for word, phonemes in item.pronunciation.words if not phonemes)
    guessed = Counter(word for item in split.accepted for word in item.pronunciation.oov)
    guessed.subtract(unpronounced)
    repeats = Counter(item.normalized for item in split.accepted)
    return {
        "split": split.name,
        "normalizer_version": NORMALIZER_VERSION,
        "phonemes_version": PHONEMES_VERSION,
        "utterances": len(split.accepted),
        "hours": round(sum(durations) / 3600, 5),
        "speakers": len({item.utterance.speaker for item in split.accepted} - {None}),
        "utterances_by_language": dict(Counter(item.utterance.language for item in split.accepted)),
        "seconds_min": round(min(durations), 3),
        "seconds_mean": round(sum(durations) / len(durations), 3),
        "seconds_max": round(max(durations), 3),
        "utterances_by_seconds": _histogram(durations),
        "words": sum(len(item.pronunciation.words) for item in split.accepted),
        "phonemes": sum(len(item.pronunciation.phonemes) for item in split.accepted),
        "oov_words": _most_common(+guessed),
        "without_pronunciation": _most_common(unpronounced),
        "distinct_sentences": len(repeats),
        "repeated_within_split": sum(count - 1 for count in repeats.values()),
        "sentences_shared_with": shared,
        "excluded": len(split.excluded),
        "excluded_by_reason": dict(sorted(Counter(item.reason for item in split.excluded).items())),
    }


def _histogram(durations: list[float]) -> dict[str, int]:
    """Utterances by duration in seconds; the lower edge belongs to its bin."""
    edges = (*_HISTOGRAM_EDGES, float("inf"))
    return {
        f"{low}-{high}" if high != float("inf") else f"{low}+": sum(low <= value < high for value in durations)
        for low, high in pairwise(edges)
    }


def _most_common(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
