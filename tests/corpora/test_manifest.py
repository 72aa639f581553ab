"""Manifests from both corpus families: what a later stage reads is what the corpus says."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, SupervisionSegment

from entropy_asr.config import Quality
from entropy_asr.corpora import jsonl, unpack
from entropy_asr.corpora.manifest import Kind, choose, evenly, make_manifests, spread
from entropy_asr.corpora.utterance import Utterance
from entropy_asr.errors import InputError
from entropy_asr.files import read_jsonl, sha256, write_jsonl

RATE = 16000
SENTENCES = {
    "en-train": ("train", "en", "Call Mr. Lee at 5 o'clock."),
    "en-test": ("test", "en", "play the next song"),
    "zh-train": ("train", "zh", "导航到北京大学。"),
    "cs-test": ("test", "mixed", "播放Night Train"),
}


def noise(seconds: float) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 0.1).astype("float32")


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """A corpus in the format of data/embedded: two utterances in each of four splits."""
    corpus = tmp_path / "embedded"
    corpus.mkdir()
    rows = []
    for split, (role, language, text) in SENTENCES.items():
        variant = text.replace("5", "6") if language == "en" else text + "吧"
        with tarfile.open(corpus / f"{split}.tar", "w") as tar:
            for index in range(2):
                path = tmp_path / f"{split}-{index}.opus"
                soundfile.write(path, noise(3 + index), RATE, format="OGG", subtype="OPUS")
                tar.add(path, arcname=path.name)
                rows.append(
                    {
                        "id": path.stem,
                        "split": role,
                        "language": language,
                        "speaker": f"voice{index}",
                        "domain": "media",
                        "text": (text, variant)[index],
                        "duration": 3.0 + index,
                        "sha256": sha256(path),
                        "asr_text": "",
                        "asr_error_rate": 0.0,
                    }
                )
    write_jsonl(corpus / "utterances.jsonl", rows)
    names = [f"{split}.tar" for split in SENTENCES] + ["utterances.jsonl"]
    (corpus / "SHA256SUMS").write_text("".join(f"{sha256(corpus / name)}  {name}\n" for name in names))
    return corpus


def test_embedded_corpus_to_cuts(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unpack.unpack("embedded", "audio", threads=2) == dict.fromkeys(SENTENCES, 2)
    make_manifests(Quality(), Kind.embedded, Path("embedded"), list(SENTENCES), Path("out"), audio=Path("audio"))
    cuts = {split: list(CutSet.from_file(f"out/{split}.jsonl.gz")) for split in SENTENCES}
    assert {split: len(found) for split, found in cuts.items()} == dict.fromkeys(SENTENCES, 2)

    cut = cuts["en-train"][0]
    supervision = cut.supervisions[0]
    assert cut.recording.sources[0].source == "audio/en-train/en-train-0.flac"
    assert (cut.duration, cut.sampling_rate, supervision.speaker, supervision.language) == (3.0, RATE, "voice0", "en")
    assert supervision.text == "Call Mr. Lee at 5 o'clock."
    assert supervision.custom["normalized"] == "call mister lee at five o'clock"
    assert supervision.custom["phonemes"][:3] == ["K", "AO", "L"]
    assert (supervision.custom["domain"], supervision.custom["corpus_kind"]) == ("media", "synthetic")
    opus, _ = soundfile.read(tmp_path / "en-train-0.opus", dtype="float32")
    np.testing.assert_allclose(cut.load_audio()[0], opus, atol=2**-15)  # decoded once, to 16 bits
    assert cuts["zh-train"][0].supervisions[0].custom["phonemes"][:4] == ["d", "ao3", "h", "ang2"]
    assert cuts["cs-test"][0].supervisions[0].custom["normalized"] == "播放 night train"


def test_same_corpus_gives_the_same_bytes(embedded: Path, tmp_path: Path) -> None:
    unpack.unpack(embedded, tmp_path / "audio")
    for out in ("one", "two"):
        make_manifests(Quality(), Kind.embedded, embedded, ["zh-train"], tmp_path / out / "same", audio=tmp_path / "audio")
    assert sha256(tmp_path / "one/same/zh-train.jsonl.gz") == sha256(tmp_path / "two/same/zh-train.jsonl.gz")


def test_only_what_a_limited_manifest_takes_is_unpacked(embedded: Path, tmp_path: Path) -> None:
    quality, splits = Quality(max_utterances=1), list(SENTENCES)
    for limit, count in ((None, 2), (1, 1)):
        audio = tmp_path / "audio"
        assert unpack.unpack(embedded, audio, limit) == dict.fromkeys(splits, count)
        assert len(list(audio.rglob("*.flac"))) == count * len(splits)
        make_manifests(quality, Kind.embedded, embedded, splits, tmp_path / f"limit-{limit}" / "same", audio=audio)
    for split in splits:
        one, all_ = (sha256(tmp_path / f"limit-{limit}/same/{split}.jsonl.gz") for limit in (1, None))
        assert one == all_


def test_a_changed_archive_is_refused(embedded: Path, tmp_path: Path) -> None:
    with open(embedded / "en-test.tar", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"en-test.tar: sha256 is .* expected .* check the corpus out again"):
        unpack.unpack(embedded, tmp_path / "audio")
    assert not (tmp_path / "audio").exists()


def test_an_archive_member_never_chooses_its_place(embedded: Path, tmp_path: Path) -> None:
    with tarfile.open(embedded / "en-test.tar", "w") as tar:
        tar.add(embedded / "utterances.jsonl", arcname="../../escaped.opus")
    sums = [line for line in (embedded / "SHA256SUMS").read_text().splitlines() if "en-test" not in line]
    (embedded / "SHA256SUMS").write_text("\n".join([*sums, f"{sha256(embedded / 'en-test.tar')}  en-test.tar"]) + "\n")
    with pytest.raises(InputError, match="is no utterance of"):
        unpack.unpack(embedded, tmp_path / "a/b/audio")
    assert not list(tmp_path.rglob("escaped.opus"))


def test_jsonl_corpus_with_segments_of_a_long_recording(tmp_path: Path) -> None:
    corpus = tmp_path / "mine"
    (corpus / "wav").mkdir(parents=True)
    soundfile.write(corpus / "wav/long.flac", noise(10), RATE)
    rows = [
        {"id": "a", "audio": "wav/long.flac", "text": "hello there", "language": "en", "offset": 1.5, "duration": 2.25},
        {"id": "b", "audio": "wav/long.flac", "text": "good morning", "language": "en", "speaker": "s1", "offset": 4},
    ]
    write_jsonl(corpus / "train.jsonl", rows)
    make_manifests(Quality(), Kind.jsonl, corpus, ["train"], tmp_path / "out")
    first, second = CutSet.from_file(tmp_path / "out/train.jsonl.gz")
    assert (first.start, first.duration, second.start, second.duration) == (1.5, 2.25, 4.0, 6.0)
    assert first.supervisions[0].custom["corpus_kind"] == "recorded"
    whole, _ = soundfile.read(corpus / "wav/long.flac", dtype="float32")
    np.testing.assert_array_equal(first.load_audio()[0], whole[round(1.5 * RATE) : round(3.75 * RATE)])


def test_phonemes_of_the_corpus_go_before_the_dictionarys(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(3), RATE)
    said = {"text": "I read 2 books, 李薇", "phonemes": "AY | R IY D | T UW | B UH K S | l i3 | uei1"}
    row = {"id": "a", "audio": "a.wav", "language": "mixed"}
    write_jsonl(tmp_path / "train.jsonl", [row | said, row | {"id": "b", "text": said["text"]}])
    make_manifests(Quality(), Kind.jsonl, tmp_path, ["train"], tmp_path / "out")
    given, derived = (cut.supervisions[0].custom for cut in CutSet.from_file(tmp_path / "out/train.jsonl.gz"))
    assert given["phonemes"] == ["AY", "R", "IY", "D", "T", "UW", "B", "UH", "K", "S", "l", "i3", "uei1"]
    assert derived["phonemes"] == ["AY", "R", "EH", "D", "T", "UW", "B", "UH", "K", "S", "l", "i3", "uei1"]
    assert given["words"] == derived["words"] == [["i", 1], ["read", 3], ["two", 2], ["books", 4], ["李", 2], ["薇", 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "utterance 1: key 'text' is None, expected text"),
        ({"language": "de"}, "language is 'de', expected one of en, zh, mixed"),
        ({"speeker": "x"}, "unknown key 'speeker'; known: id, audio, text"),
        ({"offset": "1"}, "key 'offset' is '1', expected a number"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, change: dict, message: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"id": "a", "audio": "a.wav", "text": "hi", "language": "en", **change}])
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        jsonl.read_split(tmp_path, "train")


def test_limits_nest() -> None:
    utterances = [Utterance(f"u{index}", Path("x"), "t", "en") for index in range(100)]
    ten, twenty = choose(utterances, 10), choose(utterances, 20)
    assert len(ten) == 10 and set(ten) < set(twenty)
    assert twenty == sorted(twenty, key=utterances.index) and twenty != utterances[:20]


def voices(language: str, number: int, speakers: int) -> list[MonoCut]:
    """Cuts with nothing but an id, a language and a speaker."""
    said = [SupervisionSegment("", "", 0, 1, language=language, speaker=f"s{i % speakers}") for i in range(number)]
    return [MonoCut(f"c/{language}/{i:04d}", 0, 1, 0, supervisions=[item]) for i, item in enumerate(said)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 120), st.integers(1, 5), st.randoms())
def test_a_chosen_set_is_spread_over_languages_and_speakers(sizes: list[int], limit: int, speakers: int, random: Random) -> None:
    cuts = [cut for number, size in enumerate(sizes) for cut in voices(f"l{number}", size, speakers)]
    found = spread(cuts, limit)
    assert len({cut.id for cut in found}) == len(found) == min(limit, len(cuts))
    taken = [sum(cut.supervisions[0].language == f"l{number}" for cut in found) for number in range(len(sizes))]
    # A language gets fewer than another only if all of its utterances are taken, or by the one that is left over.
    assert all(mine == size or mine + 1 >= max(taken) for mine, size in zip(taken, sizes, strict=True))
    for number, size in enumerate(sizes):
        said = [cut.supervisions[0].speaker for cut in found if cut.supervisions[0].language == f"l{number}"]
        there = [len(range(speaker, size, speakers)) for speaker in range(speakers)]
        each = [said.count(f"s{speaker}") for speaker in range(speakers)]
        assert all(mine == most or mine + 1 >= max(each) for mine, most in zip(each, there, strict=True))
    shuffled = random.sample(cuts, len(cuts))
    assert [cut.id for cut in spread(shuffled, limit)] == [cut.id for cut in found]
    assert spread(cuts, limit + 1)[:limit] == found


def test_both_languages_of_a_small_development_set_are_taken_alike() -> None:
    found = spread(voices("en", 195, 3) + voices("zh", 195, 4), 200)
    assert Counter(cut.supervisions[0].language for cut in found) == {"en": 100, "zh": 100}


@given(st.integers(0, 300), st.integers(1, 100))
def test_evenly_spaced_items_reach_from_the_first_to_the_last(number: int, limit: int) -> None:
    found = evenly(range(number), limit)
    assert len(found) == min(number, limit) and found[:1] == list(range(number))[:1]
    gaps = np.diff([*found, number])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert evenly(range(number), None) == list(range(number))


def test_command_line_prints_an_error_without_a_traceback(tmp_path: Path) -> None:
    config = tmp_path / "stage.json"
    config.write_text(json.dumps({"quality": {"min_duration": 0.5}}))
    command = [sys.executable, "-m", "entropy_asr.corpora.manifest", "--config", config, "--kind", "jsonl"]
    command += ["--corpus", tmp_path, "--split", "train", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "train.jsonl: no such file" in done.stderr
    assert "Traceback" not in done.stderr

    soundfile.write(tmp_path / "a.wav", noise(2), RATE)
    write_jsonl(tmp_path / "train.jsonl", [{"id": "a", "audio": "a.wav", "text": "hello", "language": "en"}])
    assert "train: 1 utterances, 0.00 h; 0 excluded" in subprocess.check_output(command, text=True)
    assert list(read_jsonl(tmp_path / "out/train.excluded.jsonl")) == []
