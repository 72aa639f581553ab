"""Every way in which an utterance can be bad puts it on the list with its reason, and only it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from entropy_asr.config import Quality
from entropy_asr.corpora.manifest import Kind, make_manifests
from entropy_asr.corpora.quality import ctc_frames_needed, encoder_frames, held_out_rank
from entropy_asr.errors import InputError
from entropy_asr.files import read_jsonl, write_jsonl
from entropy_asr.models.conformer import subsampled_length
from entropy_asr.text.phonemes import phonemize

RATE = 16000
LENIENT = Quality(max_excluded_fraction=1.0)


def noise(seconds: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 0.1).astype("float32")


def write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def with_nan(path: Path) -> None:
    samples = noise(2)
    samples[100] = np.nan
    write(path, samples)


def cut_off(path: Path) -> None:
    soundfile.write(path, noise(4), RATE, format="OGG", subtype="OPUS")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


AUDIO_FAULTS: dict[str, tuple[Callable[[Path], None], dict, str]] = {
    "missing": (lambda path: None, {}, "missing_audio"),
    "a folder": (lambda path: path.mkdir(), {}, "missing_audio"),
    "empty file": (lambda path: path.write_bytes(b""), {}, "unreadable_audio"),
    "not audio": (lambda path: path.write_text("<html>404</html>"), {}, "unreadable_audio"),
    "no samples": (lambda path: write(path, noise(0)), {}, "segment_outside_audio"),
    "cut off": (cut_off, {"duration": 4.0}, "segment_outside_audio"),
    "offset behind the end": (lambda path: write(path, noise(2)), {"offset": 3.0}, "segment_outside_audio"),
    "short": (lambda path: write(path, noise(0.4)), {}, "duration_below_min"),
    "long": (lambda path: write(path, noise(31)), {}, "duration_above_max"),
    "NaN": (with_nan, {}, "non_finite_samples"),
    "silence": (lambda path: write(path, np.zeros(2 * RATE, "float32")), {}, "silent_audio"),
    "more phonemes than frames": (
        lambda path: write(path, noise(0.8)),
        {"text": "transcontinental telecommunication"},
        "too_short_for_ctc",
    ),
}
PHONEME_FAULTS = {
    "HH AH L OW": "phonemes of 1 words in 'HH AH L OW', expected of 2: hello | there",
    "HH AH L OW | DH EH1 R": "EH1: no phoneme of the inventory",
    "HH AH L OW |": "no phonemes for there in 'HH AH L OW |'",
    "|": "no phonemes for hello there in '|'",
    "HH AH L OW | <blk>": "<blk>: no phoneme of the inventory",
}
TEXT_FAULTS = {"": "empty_transcript", " \u200b…！": "empty_transcript", "うた": "no_pronunciation"}


def make(corpus: Path, split: str, rows: list[dict]) -> None:
    """Write a split; each row gets an id, and a good file where it names none."""
    corpus.mkdir(exist_ok=True)
    write(corpus / "good.wav", noise(2))
    good = {"audio": "good.wav", "text": "hello", "language": "en"}
    write_jsonl(corpus / f"{split}.jsonl", [{"id": f"{split}-{i}", **good, **row} for i, row in enumerate(rows)])


def reasons(out: Path, split: str) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_jsonl(out / f"{split}.excluded.jsonl")}


@pytest.mark.parametrize("name", AUDIO_FAULTS)
def test_bad_audio_is_listed_with_its_reason(name: str, tmp_path: Path) -> None:
    fault, extra, reason = AUDIO_FAULTS[name]
    make(tmp_path, "train", [{"text": "good one"}, {"id": "bad", "audio": "bad.wav", **extra}])
    fault(tmp_path / "bad.wav")
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    (entry,) = read_jsonl(tmp_path / "out/train.excluded.jsonl")
    assert (entry["id"], entry["reason"]) == ("bad", reason)
    assert entry["detail"]
    assert [cut.id for cut in CutSet.from_file(tmp_path / "out/train.jsonl.gz")] == ["out/train/train-0"]


@pytest.mark.parametrize("text", TEXT_FAULTS)
def test_bad_text_is_listed_with_its_reason(text: str, tmp_path: Path) -> None:
    make(tmp_path, "train", [{}, {"text": text}])
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    assert reasons(tmp_path / "out", "train") == {"train-1": TEXT_FAULTS[text]}


@pytest.mark.parametrize("phonemes", PHONEME_FAULTS)
def test_phonemes_of_the_corpus_that_cannot_be_are_listed(phonemes: str, tmp_path: Path) -> None:
    make(tmp_path, "train", [{}, {"text": "hello there", "phonemes": phonemes}])
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    (entry,) = read_jsonl(tmp_path / "out/train.excluded.jsonl")
    assert (entry["id"], entry["reason"]) == ("train-1", "wrong_phonemes")
    assert entry["detail"].startswith(PHONEME_FAULTS[phonemes])


def test_repeated_id(tmp_path: Path) -> None:
    make(tmp_path, "train", [{"id": "a"}, {"id": "a", "text": "other"}])
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    assert reasons(tmp_path / "out", "train") == {"a": "duplicate_id"}
    assert len(list(CutSet.from_file(tmp_path / "out/train.jsonl.gz"))) == 1


def test_sentences_of_test_leave_dev_and_train(tmp_path: Path) -> None:
    make(tmp_path, "train", [{"text": "only train"}, {"text": "in train and dev"}, {"text": "In all three!"}])
    make(tmp_path, "dev", [{"text": "in train and dev"}, {"text": "in all three"}, {"text": "only dev"}])
    make(tmp_path, "test", [{"text": "in all, three"}, {"text": "only test"}])
    out = tmp_path / "out"
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train", "dev", "test"], out)
    across = "duplicate_across_splits"
    assert reasons(out, "train") == {"train-1": across, "train-2": across}
    assert reasons(out, "dev") == {"dev-1": across}
    assert reasons(out, "test") == {}
    report = json.loads((out / "train.quality.json").read_text())
    assert report["sentences_shared_with"] == {"dev": 2, "test": 1}


def test_too_much_excluded_stops_and_names_the_first(tmp_path: Path) -> None:
    make(tmp_path, "train", [{"text": f"sentence {i}"} for i in range(18)] + [{"text": ""}, {"audio": "gone.wav"}])
    with pytest.raises(InputError) as error:
        make_manifests(Quality(max_excluded_fraction=0.05), Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    assert "2 of 20 utterances cannot be used" in str(error.value)
    assert "train-18: empty_transcript" in str(error.value) and "train-19: missing_audio" in str(error.value)
    assert len(reasons(tmp_path / "out", "train")) == 2
    assert not (tmp_path / "out/train.jsonl.gz").exists()
    make_manifests(Quality(max_excluded_fraction=0.1), Kind.jsonl, tmp_path, ["train"], tmp_path / "out")


def test_report_counts(tmp_path: Path) -> None:
    rows = [
        {"text": "hello kroxel", "speaker": "s1"},
        {"text": "hello kroxel", "speaker": "s2"},
        {"text": "播放うた", "language": "zh", "speaker": "s2"},
        {"text": ""},
    ]
    make(tmp_path, "train", rows)
    make_manifests(LENIENT, Kind.jsonl, tmp_path, ["train"], tmp_path / "out", synthetic=True)
    report = json.loads((tmp_path / "out/train.quality.json").read_text())
    assert (report["utterances"], report["speakers"], report["excluded"]) == (3, 2, 1)
    assert report["hours"] == pytest.approx(6 / 3600, abs=1e-5)
    assert report["oov_words"] == {"kroxel": 2}
    assert report["without_pronunciation"] == {"う": 1, "た": 1}
    assert report["utterances_by_seconds"]["2-3"] == 3 and sum(report["utterances_by_seconds"].values()) == 3
    assert (report["distinct_sentences"], report["repeated_within_split"]) == (2, 1)
    assert report["excluded_by_reason"] == {"empty_transcript": 1}
    assert report["corpus_kind"] == "synthetic"


def test_encoder_frames_agree_with_the_encoder() -> None:
    """One formula in the data code, one in the model: they must not drift apart."""
    for frames in range(7, 3001):
        assert encoder_frames(frames * 0.01) == subsampled_length(frames)


def test_ctc_needs_a_blank_between_equal_phonemes() -> None:
    assert ctc_frames_needed(["a", "b", "a"]) == 3
    assert ctc_frames_needed(["a", "a", "a", "b", "b"]) == 8


def test_an_utterance_must_keep_its_frames_at_the_fastest_speed(tmp_path: Path) -> None:
    """Just enough frames as spoken; too few when augmentation speeds it up."""
    text = "transcontinental telecommunications"
    needed = ctc_frames_needed(phonemize(text, "en").phonemes)
    seconds = (4 * (needed + 1) + 3) * 0.01
    assert encoder_frames(seconds / 1.1) < needed <= encoder_frames(seconds)
    for speed, expected in ((1.0, {}), (1.1, {"bad": "too_short_for_ctc"})):
        make(tmp_path, "train", [{}, {"id": "bad", "audio": "bad.wav", "text": text}])
        write(tmp_path / "bad.wav", noise(seconds))
        quality = LENIENT.model_copy(update={"max_speed": speed})
        make_manifests(quality, Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
        assert reasons(tmp_path / "out", "train") == expected


def test_held_out_rank() -> None:
    names = ["en-train", "train-clean-100", "dev", "validation", "test-other", "aishell2-eval"]
    assert [held_out_rank(name) for name in names] == [0, 0, 1, 1, 2, 2]
