"""Transcripts from elsewhere: given ones must be of this test set, whole; a recogniser of transformers runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from repository import ENVIRONMENT

from entropy_asr.audio.batches import read_cuts
from entropy_asr.evaluation.decode_peer import loops
from entropy_asr.files import read_jsonl, write_jsonl


def decode(cuts: Path, out: Path, kind: str, path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "entropy_asr.evaluation.decode_peer", "--kind", kind, "--path", str(path)]
    command += ["--cuts", str(cuts), "--out", str(out)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_given_transcripts(tones: Path, tmp_path: Path) -> None:
    ids = [cut.id for cut in read_cuts([tones])]
    write_jsonl(tmp_path / "theirs.jsonl", [{"id": name, "text": f"heard {name}"} for name in reversed(ids)])
    done = decode(tones, tmp_path / "out.jsonl", "hypotheses", tmp_path / "theirs.jsonl")
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out.jsonl")}
    assert rows.keys() == set(ids) and all(row["hypothesis"] == f"heard {name}" for name, row in rows.items())
    assert all(row["reference"] and row["duration"] > 0 and row["decode_seconds"] is None for row in rows.values())


@pytest.mark.parametrize(("change", "message"), [(lambda ids: ids[1:], "has no line for"), (lambda ids: [*ids, "zzz"], "'zzz'")])
def test_given_transcripts_must_fit(tones: Path, tmp_path: Path, change, message: str) -> None:
    ids = sorted(cut.id for cut in read_cuts([tones]))
    write_jsonl(tmp_path / "theirs.jsonl", [{"id": name, "text": ""} for name in change(ids)])
    done = decode(tones, tmp_path / "out.jsonl", "hypotheses", tmp_path / "theirs.jsonl")
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_model_is_a_clear_error(tones: Path, tmp_path: Path) -> None:
    done = decode(tones, tmp_path / "out.jsonl", "ctranslate2", tmp_path / "nothing")
    assert done.returncode == 2 and "no model.bin in it" in done.stderr


def test_any_recogniser_of_transformers(tones: Path, tmp_path: Path) -> None:
    """A Wav2Vec2 of random weights: it hears nonsense, through the same command as a trained one."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    folder = tmp_path / "peer"
    folder.mkdir()
    letters = ["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(str({letter: i for i, letter in enumerate(letters)}).replace("'", '"'))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="<pad>", unk_token="<unk>", word_delimiter_token="|")
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    done = decode(tones, tmp_path / "out.jsonl", "huggingface", folder)
    assert done.returncode == 0, done.stderr
    rows = list(read_jsonl(tmp_path / "out.jsonl"))
    assert len(rows) == len(read_cuts([tones])) and all(row["decode_seconds"] > 0 for row in rows)
    assert any(row["hypothesis"] for row in rows)


def test_a_loop_is_told_from_speech() -> None:
    assert loops("He grew up to become a doctor. " * 8)
    assert loops("啊" * 60)
    assert not loops("navigate to one hundred eighty one Victoria Lane, then call Robin Clarke")
    assert not loops("no, no, no") and not loops("")
