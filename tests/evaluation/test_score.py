"""Scores against counts made by hand, and against two independent implementations."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import jiwer
import kaldialign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_asr.errors import InputError
from entropy_asr.evaluation.score import (
    align,
    count,
    error_report,
    marked,
    read_hypotheses,
    read_pairs,
    read_together,
    summarize,
    write_scores,
)
from entropy_asr.files import write_jsonl
from entropy_asr.text.normalize import _normalize
from entropy_asr.versions import NORMALIZER_VERSION


def row(reference: str, hypothesis: str, language: str = "en", **more) -> dict:
    return {"id": f"{reference} | {hypothesis}", "language": language, "reference": reference} | {
        "hypothesis": hypothesis,
        "duration": 2.0,
        "decode_seconds": 0.5,
        **more,
    }


def score(path: Path, rows: list[dict]) -> dict:
    write_jsonl(path / "hyps.jsonl", rows)
    return summarize(*read_hypotheses(path / "hyps.jsonl"))


KNOWN = [
    # reference, hypothesis, language, metric, substitutions, deletions, insertions, reference tokens
    ("call me now", "call me now", "en", "WER", 0, 0, 0, 3),
    ("Call me, at 5!", "call me at five", "en", "WER", 0, 0, 0, 4),
    ("call me now", "call him now", "en", "WER", 1, 0, 0, 3),
    ("call me now", "call now", "en", "WER", 0, 1, 0, 3),
    ("call me now", "please call me right now", "en", "WER", 0, 0, 2, 3),
    ("call me now", "", "en", "WER", 0, 3, 0, 3),
    ("导航去北京。", "导航去 北京", "zh", "CER", 0, 0, 0, 5),
    ("导航去北京", "导航到南京吧", "zh", "CER", 2, 0, 1, 5),
    ("2个苹果", "两个苹果", "zh", "CER", 0, 0, 0, 4),
    ("播放Night Train", "播放 night rain", "mixed", "MER", 1, 0, 0, 4),
    ("播放Night Train吧", "放 night train", "mixed", "MER", 0, 2, 0, 5),
    ("b o1 f ang4 B", "b o2 f ang4", "phonemes", "PER", 1, 1, 0, 5),
]


@pytest.mark.parametrize(("reference", "hypothesis", "language", "metric", "sub", "dele", "ins", "length"), KNOWN)
def test_known_counts(tmp_path, reference, hypothesis, language, metric, sub, dele, ins, length) -> None:
    found = score(tmp_path, [row(reference, hypothesis, language)])
    assert found["metric"] == metric
    counted = [found[key] for key in ("substitutions", "deletions", "insertions", "reference_tokens")]
    assert counted == [sub, dele, ins, length]
    assert found["value"] == pytest.approx((sub + dele + ins) / length)


def test_corpus_rate_is_over_all_tokens_not_a_mean_of_rates(tmp_path) -> None:
    found = score(tmp_path, [row("a b c d e f g h i", "a b c d e f g h i"), row("x", "y z")])
    assert found["value"] == pytest.approx(2 / 10)
    assert (found["utterances"], found["utterances_with_errors"]) == (2, 1)


def test_real_time_factor_and_speakers(tmp_path) -> None:
    rows = [row("a b", "a b", speaker="s1"), row("c d", "c", speaker="s2", duration=8.0, decode_seconds=1.0)]
    found = score(tmp_path, rows)
    assert found["rtf"] == pytest.approx(1.5 / 10)
    assert found["audio_seconds"] == 10.0
    assert found["per_speaker"]["s2"] == {"value": 0.5, "errors": 1, "reference_tokens": 2, "utterances": 1}
    assert "per_domain" not in found


def test_errors_of_the_domains_add_up_to_those_of_the_score(tmp_path) -> None:
    rows = [row("a b", "a b", domain="calls"), row("c d", "c", domain="media"), row("e f g", "e", domain="media")]
    found = score(tmp_path, rows)
    assert {name: part["errors"] for name, part in found["per_domain"].items()} == {"calls": 0, "media": 3}
    assert found["per_domain"]["media"] == {"value": 0.6, "errors": 3, "reference_tokens": 5, "utterances": 2}


def test_it_says_how_hypotheses_were_searched_for(tmp_path) -> None:
    assert (
        score(tmp_path, [row("a", "a", decoding="greedy, no 3-gram twice"), row("b", "b")])["decoding"]
        == "greedy, no 3-gram twice"
    )
    assert score(tmp_path, [row("a", "a")])["decoding"] is None


def test_a_phoneme_score_names_no_normaliser(tmp_path) -> None:
    assert score(tmp_path, [row("B b", "b b", "phonemes")])["normalizer_version"] is None
    assert score(tmp_path, [row("a", "a")])["normalizer_version"] == NORMALIZER_VERSION


def test_several_languages_are_scored_in_the_mixed_unit(tmp_path) -> None:
    found = score(tmp_path, [row("你好", "你好", "zh"), row("good day", "good", "en")])
    assert (found["metric"], found["reference_tokens"], found["deletions"]) == ("MER", 4, 1)


def test_test_sets_together_count_each_token_once_and_keep_their_unit(tmp_path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in ("english", "mandarin", "text")]
    rows = [row("B AE D", "B AE T", "phonemes"), row("n i3 h ao3 m a5 b", "n i3 h ao3 m a5", "phonemes"), row("bad", "bat")]
    for path, said in zip(paths, rows, strict=True):
        write_jsonl(path, [{**said, "id": "0001"}])  # ids need to be distinct within a test set only
    found = summarize(*read_together(paths[:2]))
    assert (found["metric"], found["substitutions"], found["deletions"], found["insertions"]) == ("PER", 1, 1, 0)
    assert (found["value"], found["utterances"]) == (pytest.approx(2 / 10), 2)
    with pytest.raises(InputError, match=r"different units; .*mandarin.jsonl: PER, .*text.jsonl: WER; score these files apart"):
        read_together(paths[1:])


TOKENS = st.lists(st.sampled_from("abcd"), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5))
def test_errors_agree_with_jiwer_and_kaldialign(sentences) -> None:
    references, hypotheses = [list(side) for side in zip(*sentences, strict=True)]
    alignments = align(references, hypotheses)
    total = count([pair for pairs in alignments for pair in pairs])
    assert total.errors == sum(kaldialign.edit_distance(ref, hyp)["total"] for ref, hyp in sentences)
    if total.reference_tokens:
        output = jiwer.process_words([" ".join(ref) for ref in references], [" ".join(hyp) for hyp in hypotheses])
        assert total.rate == pytest.approx(output.wer)
        assert (total.substitutions, total.deletions, total.insertions) == (
            output.substitutions,
            output.deletions,
            output.insertions,
        )
    for (reference, hypothesis), pairs in zip(sentences, alignments, strict=True):
        assert [ref for ref, _ in pairs if ref is not None] == reference
        assert [hyp for _, hyp in pairs if hyp is not None] == hypothesis


def test_error_report(tmp_path) -> None:
    said = {"u1": ("call me now", "call him now please"), "u2": ("call me", "call him"), "u3": ("go on", "go")}
    rows = [row(*sides, id=name) for name, sides in said.items()]
    write_jsonl(tmp_path / "hyps.jsonl", rows)
    text = error_report(*read_hypotheses(tmp_path / "hyps.jsonl"))
    assert text.startswith("WER = 57.14%\nErrors: 1 insertions, 1 deletions, 2 substitutions, over 7 reference tokens")
    for line in (
        "u1:\tcall (me->him) now (*->please)",
        "u3:\tgo (on->*)",
        "2\tme -> him",
        "1\ton",
        "1\tplease",
        "me\t0\t2\t2\t0",
        "call\t2\t0\t2\t2",
    ):
        assert line in text.splitlines()


def test_many_utterances_are_scored_in_little_time(tmp_path) -> None:
    """A twentieth of 100,000 utterances, all different, with intervals and reports; the bar is 20 s of one core for all."""
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    rng = random.Random(0)
    refs = [{"id": str(i), "text": " ".join(rng.choices(words, k=14)), "speaker": str(i % 50)} for i in range(5000)]
    hyps = [{"id": row["id"], "text": " ".join(w for w in row["text"].split() if rng.random() > 0.1)} for row in refs]
    write_jsonl(tmp_path / "refs.jsonl", refs)
    write_jsonl(tmp_path / "hyps.jsonl", hyps)
    write_scores(*read_pairs(tmp_path / "refs.jsonl", tmp_path / "hyps.jsonl", "en"), tmp_path)  # imports, and a warm cache
    _normalize.cache_clear()
    begun = time.process_time()
    write_scores(*read_pairs(tmp_path / "refs.jsonl", tmp_path / "hyps.jsonl", "en"), tmp_path)
    assert time.process_time() - begun < 2.0  # twice the bar: a machine may be slow, but not an algorithm


def test_marked_joins_neighbouring_errors() -> None:
    assert marked([("a", "x"), ("b", None), ("c", "c"), (None, "d")]) == "(a b->x) c (*->d)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no hypothesis in it"),
        ([row("a", "b", id="x"), row("a", "b", id="x")], "line 2: id 'x' occurs twice"),
        ([row("a", "b", "fr")], "language is 'fr', expected one of en, zh, mixed, phonemes"),
        ([row("a", "b") | {"hypothesis": None}], "key 'hypothesis' is None, expected text"),
        ([row("a", "b"), row("B", "b", "phonemes")], "phonemes and text in one file"),
        ([row("a", "b"), row("?!", "b")], "the reference of .* has no word after normalisation"),
    ],
)
def test_bad_hypotheses_are_refused(tmp_path, rows, message) -> None:
    with pytest.raises(InputError, match=message):
        score(tmp_path, rows)


def test_command_line(tmp_path) -> None:
    write_jsonl(tmp_path / "h.jsonl", [row("call me now", "call now")])
    command = [sys.executable, "-m", "entropy_asr.evaluation.score", "--hyps", tmp_path / "h.jsonl"]
    command += ["--out", tmp_path / "score.json", "--errors", tmp_path / "errors.txt"]
    said = subprocess.check_output(command, text=True)
    assert "WER 33.33% (0 substitutions, 1 deletions, 0 insertions; 3 tokens)" in said
    assert json.loads((tmp_path / "score.json").read_text())["deletions"] == 1
    assert "call (me->*) now" in (tmp_path / "errors.txt").read_text()
    done = subprocess.run([*command[:4], tmp_path / "no.jsonl", *command[5:]], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "no.jsonl: no such file" in done.stderr


def write_sides(folder: Path, refs: list[dict], hyps: list[dict]) -> list[str]:
    write_jsonl(folder / "refs.jsonl", refs)
    write_jsonl(folder / "hyps.jsonl", hyps)
    files = ["--refs", folder / "refs.jsonl", "--hyps", folder / "hyps.jsonl", "--out", folder / "scores"]
    return [sys.executable, "-m", "entropy_asr.cli", "score", *map(str, files)]


def test_scores_of_any_system(tmp_path) -> None:
    refs = [{"id": "a", "text": "Call me at 5.", "speaker": "s"}, {"id": "b", "text": "Go on", "speaker": "t"}]
    hyps = [{"id": "b", "text": "go"}, {"id": "a", "text": "call me at five"}]
    said = subprocess.check_output([*write_sides(tmp_path, refs, hyps), "--language", "en"], text=True)
    assert "WER 16.67% (0 substitutions, 1 deletions, 0 insertions; 6 tokens)" in said
    lines = (tmp_path / "scores/utterances.csv").read_text().splitlines()
    assert lines[1] == "b,t,1,0,1,0,2,go (on->*)"
    assert "go (on->*)" in (tmp_path / "scores/errors.txt").read_text()
    assert json.loads((tmp_path / "scores/score.json").read_text())["per_speaker"]["t"]["errors"] == 1


A, B = {"id": "a", "text": "one"}, {"id": "b", "text": "two"}


@pytest.mark.parametrize(
    ("refs", "hyps", "language", "message"),
    [
        ([A], [A, B], "en", "refs.jsonl: 1 utterance(s) missing, such as 'b'"),
        ([A, B], [A], "en", "hyps.jsonl: 1 utterance(s) missing, such as 'b'"),
        ([A, A], [A], "en", "refs.jsonl, line 2: id 'a' occurs twice"),
        ([A], [A, A], "en", "hyps.jsonl, line 2: id 'a' occurs twice"),
        ([A, {"id": "b", "text": "..."}], [A, B], "en", "reference of 'b', '...', has no word"),
        ([{"id": "a"}], [A], "en", "key 'text' is None"),
        ([], [], "en", "no reference in it"),
        ([A], [A], "french", "--language is 'french', expected one of en, zh, mixed"),
    ],
)
def test_sides_that_do_not_fit_are_refused(tmp_path, refs, hyps, language, message) -> None:
    done = subprocess.run([*write_sides(tmp_path, refs, hyps), "--language", language], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "scores").exists()
