"""The reference alignment: when each phoneme, character and word of the evaluation utterances is said.

    python -m entropy_asr.analysis.alignment --config results/config/metrics.json --encoder …/part-3/encoder.safetensors \
        --fit results/manifests/…-train.jsonl.gz --held-out …-dev.jsonl.gz --test …-test.jsonl.gz --out results/metrics/alignment

One aligner for all encoders, so that their metrics have the same labels: the final phoneme CTC encoder of the first seed.  It
chooses the utterances, too: `fit` to fit probes on (training utterances, by the hash of their ids), `held_out` to end fitting
(development), `test` to score.  Probes therefore fit on speech that the encoders have heard, and are ended and scored on speech
that they have not.

CTC spikes: most frames are blank, also inside a phoneme.  So two neighbouring phonemes meet half way between their spikes, and
none reaches further than REACH from its own; what is left is silence [O].
"""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import read_jsonl, write_json, write_jsonl
from entropy_asr.models.ctc import BLANK_ID

log = logging.getLogger(__name__)

REACH = 0.12  # seconds from a spike to the furthest border of its phoneme
SETS = ("fit", "held_out", "test")
MODEL_FRAMES, FIRST_CENTRE = 4, 3.5  # the Conformer's downsampling, and where its first frame is, in feature frames


class CtcPath(NamedTuple):
    """states: (T,) of 2S+1, odd ones are targets; score: log-probability of the path, -inf where there is none."""

    states: Tensor
    score: float


def ctc_viterbi(log_probs: Tensor, lens: Tensor, targets: list[list[int]]) -> list[CtcPath]:
    """Best CTC path of each utterance through its own targets; all utterances and all states at once, frame by frame.

    Args:
        log_probs: (N, T, V); lens: (N,); targets: N lists of labels without blanks.
    """
    n, frames, _ = log_probs.shape
    sizes = torch.tensor([2 * len(row) + 1 for row in targets])
    labels = torch.full((n, int(sizes.max())), BLANK_ID)
    for row, ids in enumerate(targets):
        labels[row, 1 : 2 * len(ids) : 2] = torch.tensor(ids, dtype=torch.long)
    emitted = log_probs.double().gather(2, labels[:, None, :].expand(-1, frames, -1))  # (N, T, Z)
    places = torch.arange(labels.size(1))
    may_skip = torch.zeros_like(labels, dtype=torch.bool)
    may_skip[:, 2:] = (labels[:, 2:] != BLANK_ID) & (labels[:, 2:] != labels[:, :-2])
    best = torch.where((places < 2) & (places < sizes[:, None]), emitted[:, 0], -torch.inf)
    back = torch.zeros(n, frames, labels.size(1), dtype=torch.uint8)
    for t in range(1, frames):
        ways = best.new_full((3, *best.shape), -torch.inf)
        ways[0] = best
        ways[1, :, 1:] = best[:, :-1]
        ways[2, :, 2:] = torch.where(may_skip[:, 2:], best[:, :-2], -torch.inf)
        reached, back_t = ways.max(0)
        back[:, t] = back_t.to(torch.uint8)
        best = torch.where((t < lens)[:, None], reached + emitted[:, t], best)
    rows = torch.arange(n)
    ends = torch.stack([best[rows, sizes - 1], best[rows, (sizes - 2).clamp(min=0)]], 1)
    score, which = ends.max(1)
    state = (sizes - 1 - which).clamp(min=0)
    states = torch.zeros(n, frames, dtype=torch.long)
    for t in range(frames - 1, -1, -1):
        states[:, t] = state
        state = torch.where(t < lens, state - back[rows, t, state].long(), state)
    return [CtcPath(states[i, : int(lens[i])], score[i].item()) for i in range(n)]


def borders(states: Tensor, frame_seconds: float, duration: float) -> list[tuple[float, float]]:
    """Start and end of each phoneme, seconds, from a path at 25 frames a second."""
    spikes: dict[int, list[int]] = {}
    for frame, state in enumerate(states.tolist()):
        if state % 2:
            spikes.setdefault(state // 2, []).append(frame)
    step = MODEL_FRAMES * frame_seconds
    first = FIRST_CENTRE * frame_seconds - step / 2
    own = [(first + frames[0] * step, first + (frames[-1] + 1) * step) for _, frames in sorted(spikes.items())]
    starts, ends = [max(0.0, own[0][0] - REACH)], []
    for (_, end), (start, _) in pairwise(own):
        middle = (end + start) / 2
        ends.append(min(middle, end + REACH))
        starts.append(max(middle, start - REACH))
    ends.append(min(duration, own[-1][1] + REACH))
    return list(zip(starts, ends, strict=True))


@dataclass(frozen=True)
class Unit:
    """A character or word: its text, its phonemes (places in the utterance's list), its language."""

    text: str
    first: int
    last: int
    language: str


@dataclass(frozen=True)
class Alignment:
    """One utterance.

    phonemes, starts, ends: of each phoneme, seconds; units: those of mixed error rate, in order;
    score: mean log-probability of the path, nats a frame.
    """

    id: str
    phonemes: list[str]
    starts: list[float]
    ends: list[float]
    units: list[Unit]
    score: float

    def labels(self, centres: np.ndarray) -> list[str | None]:
        """The phoneme at each time, (T,) seconds; None in silence."""
        place = np.searchsorted(self.starts, centres, side="right") - 1
        spoken = [i >= 0 and time < self.ends[i] for i, time in zip(place, centres, strict=True)]
        return [self.phonemes[i] if said else None for i, said in zip(place, spoken, strict=True)]

    def spans(self, centres: np.ndarray) -> list[np.ndarray]:
        """Frames of each unit, as places in `centres`; at least the nearest one."""
        found = []
        for unit in self.units:
            begin, end = self.starts[unit.first], self.ends[unit.last]
            inside = np.flatnonzero((centres >= begin) & (centres < end))
            found.append(inside if len(inside) else np.array([np.abs(centres - (begin + end) / 2).argmin()]))
        return found

    def row(self) -> dict[str, Any]:
        """As JSON."""
        times = {"starts": [round(t, 4) for t in self.starts], "ends": [round(t, 4) for t in self.ends]}
        units = [[u.text, u.first, u.last, u.language] for u in self.units]
        return {"id": self.id, "phonemes": self.phonemes, **times, "units": units, "score": round(self.score, 5)}


def read_alignments(path: Path) -> dict[str, Alignment]:
    """Alignments by utterance. Raises :class:`InputError` where a line is none, or an utterance has two."""
    found = {}
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            row["units"] = [Unit(*unit) for unit in row["units"]]
            item = Alignment(**row)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: not an alignment ({error}); run the rule `alignment` again") from None
        if item.id in found:
            raise InputError(f"{path}, line {number}: utterance {item.id!r} occurs twice; run the rule `alignment` again")
        found[item.id] = item
    return found


def units_of(name: str, custom: dict[str, Any]) -> list[Unit]:
    """Characters and words of a manifest's utterance with the phonemes that are theirs; what is not pronounced is left out.

    Raises:
        InputError: the manifest does not say whose its phonemes are.
    """
    from entropy_asr.text.scripts import has_hanzi

    words = custom.get("words", [])
    if sum(count for _, count in words) != len(custom["phonemes"]):
        raise InputError(f"utterance {name}: its words are not those of its phonemes; make the manifests again")
    units, place = [], 0
    for word, count in words:
        if count:
            units.append(Unit(word, place, place + count - 1, "zh" if has_hanzi(word) else "en"))
        place += count
    return units


def align(cuts: list, encoder: Path, features, min_score: float, max_duration: float) -> tuple[list[Alignment], dict[str, Any]]:
    """Alignments of utterances, in the order of their ids, and a report on them."""
    from entropy_asr.audio.batches import evaluation_batches
    from entropy_asr.models.artifacts import load_ctc_head, load_encoder, read_header
    from entropy_asr.training.distributed import choose_device

    device = choose_device()
    learned = read_header(encoder).get("objective")
    if learned != "phoneme":
        raise InputError(
            f"{encoder}: the aligner must be a part of phoneme pretraining, this one learned: {learned or 'nothing'}"
        )
    conformer, (head, symbols) = load_encoder(encoder).to(device).eval(), load_ctc_head(encoder)
    head.to(device).eval()
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    aligned, dropped, levels = [], [], {"speech": [0.0, 0], "silence": [0.0, 0]}
    for batch, mels, lens in evaluation_batches(cuts, features, max_duration):
        with torch.inference_mode():
            encoder_out, out_lens = conformer(mels.to(device), lens)
            log_probs = head(encoder_out).cpu()
        said = [cut.supervisions[0] for cut in batch]
        paths = ctc_viterbi(log_probs, out_lens.cpu(), [[ids[p] for p in s.custom["phonemes"]] for s in said])
        for cut, supervision, mel, path in zip(batch, said, mels, paths, strict=True):
            score = path.score / len(path.states)
            if not supervision.custom["phonemes"] or not np.isfinite(score) or score < min_score:
                dropped.append((cut.id, "low_score" if np.isfinite(score) else "too_short", score))
                continue
            starts, ends = zip(*borders(path.states, features.frame_shift, cut.duration), strict=True)
            phonemes = supervision.custom["phonemes"]
            units = units_of(cut.id, supervision.custom)
            aligned.append(Alignment(cut.id, phonemes, list(starts), list(ends), units, score))
            _measure_levels(aligned[-1], mel, cut.duration, features.frame_shift, levels)
    aligned.sort(key=lambda item: item.id)
    return aligned, quality(aligned, dropped, sum(cut.duration for cut in cuts), levels)


def _measure_levels(item: Alignment, mel: Tensor, duration: float, shift: float, levels: dict[str, list]) -> None:
    """Sum the log-Mel level of feature frames that are speech, and of those that are not."""
    loud = mel[: round(duration / shift)].mean(1).numpy()
    said = np.array([label is not None for label in item.labels((np.arange(len(loud)) + 0.5) * shift)])
    for name, chosen in (("speech", loud[said]), ("silence", loud[~said])):
        levels[name] = [levels[name][0] + float(chosen.sum()), levels[name][1] + len(chosen)]


def quality(aligned: list[Alignment], dropped: list[tuple], audio_seconds: float, levels: dict[str, list]) -> dict[str, Any]:
    """How far the labels can be trusted. Durations in seconds, scores in nats a frame.

    Raises:
        InputError: nothing could be aligned.
    """
    if not aligned:
        raise InputError(
            f"none of {len(dropped)} utterances could be aligned; lower metrics.min_alignment_score or train the encoder longer"
        )
    lengths = np.array([end - start for item in aligned for start, end in zip(item.starts, item.ends, strict=True)])
    scores = np.array([item.score for item in aligned])
    level = {name: total / number if number else None for name, (total, number) in levels.items()}
    return {
        "utterances": len(aligned) + len(dropped),
        "aligned": len(aligned),
        "dropped_fraction": len(dropped) / (len(aligned) + len(dropped)),
        "dropped_by_reason": dict(Counter(reason for _, reason, _ in dropped)),
        "dropped": [name for name, _, _ in dropped],
        "score_nats_per_frame": {f"p{q}": float(np.percentile(scores, q)) for q in (5, 25, 50, 75, 95)},
        "phonemes": len(lengths),
        "units": sum(len(item.units) for item in aligned),
        "phoneme_seconds": {f"p{q}": float(np.percentile(lengths, q)) for q in (5, 25, 50, 75, 95)},
        "phonemes_without_duration": int((lengths <= 0).sum()),
        "speech_fraction": float(lengths.sum() / audio_seconds),
        "mean_log_mel": level,
        "silence_is_quieter": None if None in level.values() else level["silence"] < level["speech"],
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    encoder: Path = typer.Option(..., help="encoder.safetensors with its phoneme head"),
    fit: list[Path] = typer.Option(..., help="training manifests"),
    held_out: list[Path] = typer.Option(..., help="development manifests"),
    test: list[Path] = typer.Option(..., help="test manifests"),
    out: Path = typer.Option(..., help="folder to write"),
) -> None:
    """Choose the utterances of the metrics and align them."""
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.config_files import load_stage
    from entropy_asr.corpora.manifest import choose
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    metrics = settings.metrics
    report = {"aligner": str(encoder), "reach_seconds": REACH}
    limits = {"fit": metrics.fit_utterances, "held_out": metrics.held_out_utterances, "test": metrics.test_utterances}
    for name, manifests in zip(SETS, (fit, held_out, test), strict=True):
        cuts = choose(list(read_cuts(list(dict.fromkeys(manifests)))), limits[name])
        aligned, report[name] = align(cuts, encoder, settings.features, metrics.min_alignment_score, metrics.max_duration)
        write_jsonl(out / f"{name}.jsonl.gz", (item.row() for item in aligned))
        found = report[name]
        log.info(
            "%s: %d of %d utterances aligned, median score %.3f nats/frame, speech %.0f%%",
            name, found["aligned"], found["utterances"], found["score_nats_per_frame"]["p50"], 100 * found["speech_fraction"],
        )  # fmt: skip
    write_json(out / "quality.json", report)


if __name__ == "__main__":
    app()
