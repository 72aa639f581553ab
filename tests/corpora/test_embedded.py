"""The embedded corpus as committed: its hashes, its splits, its archives; and the functions that made its text."""

import gzip
import hashlib
import io
import json
import random
import re
import tarfile
from collections import defaultdict
from pathlib import Path

import msgpack
import numpy as np
import pytest
from test_trigrams import write_model, write_sphinx

from entropy_asr.corpora.embedded import compare, grammar, intelligibility, lm_text, opus, pack, pronounce, sentences, tables
from entropy_asr.files import read_jsonl, write_jsonl
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import as_said, phonemize, readings
from entropy_asr.text.scripts import has_hanzi

DATA = Path(__file__).parents[2] / "data" / "embedded"
HANZI = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def utterances():
    return [json.loads(line) for line in (DATA / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def lm_lines():
    with gzip.open(DATA / "lm_text.jsonl.gz", "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def base_voices(speaker):
    return {re.sub(r"\d+$", "", part) for part in speaker.split("-")}


def test_hashes_match():
    listed = dict(reversed(line.split("  ")) for line in (DATA / "SHA256SUMS").read_text().splitlines())
    assert set(listed) == {p.name for p in DATA.iterdir() if p.suffix in {".tar", ".jsonl", ".gz"}}
    for name, expected in listed.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == expected, name


def test_size_limit():
    assert sum(p.stat().st_size for p in DATA.iterdir()) < 40 * 2**20


def test_no_held_out_sentence_in_training_text(utterances, lm_lines):
    held_out = {grammar.text_key(u["text"]) for u in utterances if u["split"] != "train"}
    train = {grammar.text_key(u["text"]) for u in utterances if u["split"] == "train"}
    assert not held_out & train
    assert not (held_out | train) & {grammar.text_key(line["text"]) for line in lm_lines}


def test_sentences_are_distinct(utterances):
    keys = [grammar.text_key(u["text"]) for u in utterances]
    assert len(set(keys)) == len(keys)


def test_test_voices_are_heard_nowhere_else(utterances):
    voices = defaultdict(set)
    for u in utterances:
        voices[u["split"]] |= base_voices(u["speaker"])
    assert not voices["test"] & (voices["train"] | voices["dev"])


def test_dev_speakers_are_not_train_speakers(utterances):
    speakers = defaultdict(set)
    for u in utterances:
        speakers[u["split"]].add(u["speaker"])
    assert not speakers["dev"] & speakers["train"]


def test_text_is_in_its_own_script(utterances, lm_lines):
    for record in [*utterances, *lm_lines]:
        text = record["text"]
        assert not re.search(r"[0-9]", text), text
        if record["language"] == "en":
            assert re.fullmatch(r"[A-Za-z', ?]+", text), text
        if record["language"] == "zh":
            assert re.fullmatch(r"[\u4e00-\u9fff，？]+", text), text
        if record["language"] == "mixed":
            assert HANZI.search(text) and re.search(r"[A-Za-z]", text), text


def test_hours_of_each_split(utterances):
    minutes = defaultdict(float)
    for u in utterances:
        minutes[u["language"], u["split"]] += u["duration"] / 60
    for language in ("en", "zh"):
        for split in ("train", "dev", "test"):
            assert minutes[language, split] == pytest.approx(sentences.MINUTES[split], rel=0.1)


def test_archives_hold_exactly_the_listed_utterances(utterances):
    soundfile = pytest.importorskip("soundfile")
    listed = {u["id"]: u for u in utterances}
    found = set()
    for path in sorted(DATA.glob("*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert [m.name for m in members] == sorted(m.name for m in members)
            assert all(m.mtime == 0 and m.uid == 0 and m.uname == "" for m in members)
            for position, member in enumerate(members):
                utterance = listed[member.name.removesuffix(".opus")]
                found.add(utterance["id"])
                data = archive.extractfile(member).read()
                assert hashlib.sha256(data).hexdigest() == utterance["sha256"]
                if position % 40 == 0:
                    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32")
                    assert rate == 16_000 and audio.ndim == 1
                    assert len(audio) / rate == pytest.approx(utterance["duration"], abs=0.001)
                    assert 0.01 < np.sqrt(np.mean(audio**2)) < 0.3
    assert found == set(listed)


def test_kept_utterances_were_understood(utterances):
    for u in utterances:
        assert u["asr_error_rate"] is None or intelligibility.understood(u["language"], u["asr_error_rate"])
    assert all(u["asr_error_rate"] is not None for u in utterances if u["split"] != "train")


@pytest.mark.parametrize("language", ["en", "zh", "mixed"])
def test_grammar_is_deterministic_and_fills_every_slot(language):
    for domain in grammar.domains(language):
        first, second = (grammar.generate(language, domain, random.Random(3)) for _ in range(2))
        drawn = [next(first) for _ in range(50)]
        assert drawn == [next(second) for _ in range(50)]
        assert not any(re.search(r"[{}0-9]", sentence) for sentence in drawn)


def test_grammar_is_rich_enough():
    for language in ("en", "zh"):
        templates = grammar.load_grammar()[language]["domains"]
        assert len(templates) >= 7 and min(len(t) for t in templates.values()) >= 12


@pytest.mark.parametrize(
    ("value", "english", "mandarin"),
    [(0, "zero", "零"), (10, "ten", "十"), (22, "twenty two", "二十二"), (105, "one hundred five", "一百零五"),
     (112, "one hundred twelve", "一百一十二"), (120, "one hundred twenty", "一百二十"), (200, "two hundred", "二百")],
)  # fmt: skip
def test_number_words(value, english, mandarin):
    assert grammar.number_en(value) == english
    assert grammar.number_zh(value) == mandarin


@pytest.mark.parametrize(
    ("language", "reference", "transcript", "expected"),
    [
        ("en", "set the temperature to twenty two degrees", "Set the temperature to 22 degrees.", 0.0),
        ("en", "remind me at four thirty five", "Remind me at 4:35", 0.0),
        ("en", "dial one seven six seven", "Dial 176-7", 0.0),
        ("en", "turn on the fan at twenty percent", "Turn on the van at 20%.", 1 / 7),
        ("zh", "打电话给李薇", "打电话给李伟。", 0.0),
        ("zh", "把音量调到百分之二十", "把音量調到20%", 0.0),
        ("zh", "音量调到十二", "音量掉道12", 0.0),
        ("mixed", "播放Yesterday", "播放 yesterday", 0.0),
        ("en", "call Mary", "", 1.0),
    ],
)
def test_error_rate(language, reference, transcript, expected):
    assert intelligibility.error_rate(reference, transcript, language) == pytest.approx(expected)


def test_error_rates_of_the_listing_can_be_made_again(utterances):
    for u in random.Random(0).sample([u for u in utterances if u["asr_text"] is not None], 100):
        rate = intelligibility.error_rate(u["text"], u["asr_text"], u["language"])
        assert rate == pytest.approx(u["asr_error_rate"], abs=1e-4), u["id"]


def test_page_shows_the_figures_of_the_data():
    page = (DATA.parents[1] / "docs" / "corpus.md").read_text(encoding="utf-8")
    assert tables.tables(DATA) in page


def test_opus_bytes_depend_on_the_audio_alone():
    pytest.importorskip("soundfile")
    audio = np.sin(np.arange(32_000) / 20).astype(np.float32) * 0.3
    assert opus.encode(audio) == opus.encode(audio)


def test_everyday_sentences_are_cleaned(tmp_path):
    rows = [("老师，您好！请进。", "Hello, teacher! Come in."), ("他1岁。", "He is 1."), ("太长" * 10, "word " * 13)]
    table = [{"chinese": zh, "translation": {"en": en}, "hsk_level": 1} for zh, en in rows]
    path = tmp_path / "hsk.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    assert sentences.everyday(path, "zh") == [(1, "老师，您好，请进")]
    assert sentences.everyday(path, "en") == [(1, "Hello, teacher, Come in")]


def test_lm_text_takes_words_from_the_dictionaries_and_nothing_that_is_read(tmp_path, monkeypatch):
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.noun").write_text(
        '  1 licence "not this line of it"\n'
        '00001 03 n 01 x 0 000 | a fruit; "she ate an apple"; "two words"; "she lives on the north-side"; "in 1990 he came"\n'
        '00002 03 n 01 x 0 000 | a word; "the xqzzt was there"; "she read this one"\n'
    )
    english = [["london"], ["apples", "xqzzt", "s", "a", "bitchy"], ["the", "dog", "is"]]
    for language, words in (("zh", [["我们"], [], ["读书", "香蕉", "A股"]]), ("en", english)):
        table = msgpack.packb([{"format": "cB", "version": 1}, *words])
        (tmp_path / f"words-{language}.msgpack.gz").write_bytes(gzip.compress(table))
    (tmp_path / "hsk.json").write_text("[]")
    (tmp_path / "sunpinyin").mkdir()
    write_model(tmp_path / "sunpinyin")
    (tmp_path / "sphinx").mkdir()
    write_sphinx(tmp_path / "sphinx")
    monkeypatch.setattr(lm_text, "REQUESTS", 8)
    monkeypatch.setattr(lm_text, "CLAUSES", 1)
    monkeypatch.setattr(lm_text, "WORDS_IN_A_ROW", {"en": 6, "zh": 3})
    plan = [{"text": "She read this one!"}]
    lines = lm_text.lm_text(plan, tmp_path, 0)
    found = {
        domain: {line["text"] for line in lines if line["domain"] == domain}
        for domain in ("examples", "clauses", "words", "media")
    }
    assert found["examples"] == {"she ate an apple", "she lives on the north side"}
    assert found["clauses"] == {"我们读书", "the dog is"}
    rows = {"".join(sorted(line)) if has_hanzi(line) else " ".join(sorted(line.split())) for line in found["words"]}
    assert rows == {"".join(sorted("我们香蕉读书")), "a apples dog is london the"}
    assert found["media"] and sum(line["domain"] not in found for line in lines) > 0
    assert lines == lm_text.lm_text(plan, tmp_path, 0)


@pytest.mark.parametrize(
    ("text", "ipa", "expected"),
    [
        ("to play", "tə plˈeɪ.", "T AH | P L EY"),
        ("read to me", "ɹˈiːd tə mˌiː.", "R IY D | T AH | M IY"),
        ("i have read it", "aɪ hɐv ɹˈɛd ɪt.", "AY | HH AE V | R EH D | IH T"),  # HH AH V is in no dictionary
        ("thirty", "θˈɜːɾi.", "TH ER D IY"),
        ("thirty", "θˈɜːti.", "TH ER T IY"),
        ("the last", "ðə lˈɑːst.", "DH AH | L AE S T"),  # an accent's vowels are not the dictionary's
    ],
)
def test_of_the_dictionarys_pronunciations_the_one_that_was_said_is_taken(text, ipa, expected):
    chosen = pronounce.nearest(phonemize(text, "en").words, pronounce.arpabet(ipa))
    assert " | ".join(map(" ".join, chosen)) == expected


@pytest.mark.parametrize(
    ("text", "ipa", "expected"),
    [
        ("the water", "ðə wˈɔːtə.", "DH AH | W AO T AH"),
        ("my car", "maɪ kˈɑː.", "M AY | K AA"),
        ("car is", "kˈɑːɹ ɪz.", "K AA R | IH Z"),  # before a vowel it is said
        ("thirty birds", "θˈɜːti bˈɜːdz.", "TH ER T IY | B ER D Z"),
        ("bakery", "bˈeɪkəɹɪ.", "B EY K AH R IY"),
        ("near here", "nˌiə hˈiə.", "N IH R | HH IY R"),
    ],
)
def test_an_accent_without_r_leaves_it_out_where_the_voice_does(text, ipa, expected):
    chosen = pronounce.nearest(phonemize(text, "en").words, pronounce.arpabet(ipa), rhotic=False)
    assert " | ".join(map(" ".join, chosen)) == expected


def test_a_symbol_without_a_phone_is_an_error():
    assert pronounce.arpabet("ðɛɹ, ˈaɪəɹz?") == ["DH", "EH", "R", "AY", "ER", "R", "Z"]
    with pytest.raises(ValueError, match=r"no ARPAbet phone for \['ɬ'\]"):
        pronounce.arpabet("ɬa")


def test_committed_phonemes_are_the_dictionarys_save_for_the_r_of_british_voices(utterances):
    said = [u for u in utterances if "phonemes" in u]
    assert {u["id"] for u in said} == {u["id"] for u in utterances if u["language"] == "en"}
    first, others, silent = 0, 0, {"a": 0, "b": 0}
    for u in said:
        by_text = phonemize(normalize(u["text"], "en"), "en")
        for (word, plain), (_, phonemes) in zip(by_text.words, as_said(by_text, u["phonemes"]).words, strict=True):
            first, others = first + (phonemes == plain), others + (phonemes != plain)
            known = [plain, *map(list, readings(word))]
            if phonemes not in known:
                assert phonemes in [other for phones in known for other in pronounce.non_rhotic(phones)], (u["id"], word)
                silent[u["speaker"][0]] += 1
    assert 0.05 < others / (first + others) < 0.15
    assert silent["a"] == 0 and silent["b"] > 400


def test_pack_drops_what_was_not_understood_and_compare_sees_a_changed_text(tmp_path):
    plan = [
        {"id": f"en-test-000{i}", "split": "test", "language": "en", "speaker": "af_nova", "domain": "media"}
        | {"text": f"play song {word}", "speed": 1.0, "rank": 0.0}
        for i, word in enumerate(["one", "two", "three"])
    ]
    write_jsonl(tmp_path / "plan.jsonl", plan)
    write_jsonl(
        tmp_path / "asr.jsonl",
        [
            {"id": "en-test-0000", "asr_text": "play song one", "asr_error_rate": 0.0},
            {"id": "en-test-0001", "asr_text": "something else", "asr_error_rate": 1.0},
        ],
    )
    (tmp_path / "opus").mkdir()
    for utterance in plan[:2]:
        (tmp_path / "opus" / f"{utterance['id']}.opus").write_bytes(opus.encode(np.zeros(16_000, np.float32)))
    write_jsonl(tmp_path / "phonemes.jsonl", [{"id": "en-test-0000", "phonemes": "P L EY | S AO NG | W AH N"}])
    write_jsonl(tmp_path / "lm.jsonl.gz", [])
    for name in ("a", "b"):
        pack.pack(
            tmp_path / "plan.jsonl",
            tmp_path / "opus",
            tmp_path / "asr.jsonl",
            tmp_path / "phonemes.jsonl",
            tmp_path / "lm.jsonl.gz",
            tmp_path / name,
        )
    assert (tmp_path / "a" / "SHA256SUMS").read_bytes() == (tmp_path / "b" / "SHA256SUMS").read_bytes()
    with tarfile.open(tmp_path / "a" / "en-test.tar") as archive:
        assert archive.getnames() == ["en-test-0000.opus"]
    assert compare.compare(tmp_path / "a", tmp_path / "b")[0] == []
    listing = tmp_path / "b" / "utterances.jsonl"
    whole = listing.read_text()
    for old, new in (("play song one", "play song nine"), ("W AH N", "AH N")):
        assert old in whole
        listing.write_text(whole.replace(old, new))
        assert compare.compare(tmp_path / "a", tmp_path / "b")[0] == ["en-test-0000"]


def test_pack_leaves_out_what_makes_a_split_too_long(tmp_path, monkeypatch):
    monkeypatch.setitem(sentences.MINUTES, "test", 2 / 60)
    plan = [
        {"id": f"en-test-000{i}", "split": "test", "language": "en", "speaker": "af_nova", "domain": "media", "text": "play it"}
        for i in range(3)
    ]
    write_jsonl(tmp_path / "plan.jsonl", plan)
    write_jsonl(tmp_path / "lm.jsonl.gz", [])
    (tmp_path / "opus").mkdir()
    for utterance in plan:
        (tmp_path / "opus" / f"{utterance['id']}.opus").write_bytes(opus.encode(np.zeros(16_000, np.float32)))
    pack.pack(tmp_path / "plan.jsonl", tmp_path / "opus", None, None, tmp_path / "lm.jsonl.gz", tmp_path / "out")
    assert [row["id"] for row in read_jsonl(tmp_path / "out" / "utterances.jsonl")] == ["en-test-0000", "en-test-0001"]
