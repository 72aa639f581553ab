"""The metrics of whole encoders: the same by whatever road the frames come, in memory that does not grow with them."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from entropy_asr.analysis.alignment import Alignment, Unit
from entropy_asr.analysis.drift import drift_rows
from entropy_asr.analysis.encoder_metrics import Collector, measure
from entropy_asr.analysis.frames import Frames, frames_of
from entropy_asr.analysis.probe_command import deal, probe
from entropy_asr.audio.batches import read_cuts
from entropy_asr.cli import app
from entropy_asr.config import Features, Metrics
from entropy_asr.errors import InputError

METRICS = Metrics(min_alignment_score=-1000, probe_seeds=1, max_epochs=3, groups=3, mlp_hidden=8, resamples=50, layers=[0, -1])


def numbers(result: dict) -> list[float]:
    nse = [item[name] for item in result["nse"] for name in ("plain", "bias", "value", "low", "high")]
    names = ("value", "low", "high", "nats", "entropy", "control", "control_low", "control_high")
    probed = [item[name] for metric in ("pai", "csai") for item in result[metric] for name in names]
    return [value for value in nse + probed if value is not None]


@pytest.fixture(scope="module")
def direct(speech: Path, aligner: Path) -> dict:
    return probe(aligner, speech, aligner, METRICS)


def test_every_metric_of_every_layer_is_there(direct: dict) -> None:
    assert [item["layer"] for item in direct["nse"]] == [0, 1, 2]
    assert {(item["layer"], item["family"], item["language"]) for item in direct["pai"]} == {
        (layer, family, language) for layer in (0, 2) for family in ("linear", "mlp") for language in ("all", "en", "zh")
    }
    assert {item["layer"] for item in direct["csai"]} == {0, 2}
    assert direct["corpus_kind"] == "synthetic" and direct["frames_per_second"] == 25.0


def test_batches_make_no_difference(speech: Path, aligner: Path, direct: dict) -> None:
    alone = probe(aligner, speech, aligner, METRICS.model_copy(update={"max_duration": 1.0}))
    assert numbers(alone) == pytest.approx(numbers(direct), abs=1e-4)


def test_saved_frames_give_the_numbers_of_their_encoder(speech: Path, aligner: Path, direct: dict, tmp_path: Path) -> None:
    features = Features()
    for frames in frames_of(aligner, read_cuts([speech]), features, 60.0):
        np.save(tmp_path / f"{frames.id}.npy", torch.stack(frames.layers).numpy())
    saved = probe(tmp_path, speech, aligner, METRICS)
    assert [item["plain"] for item in saved["nse"]] == pytest.approx([item["plain"] for item in direct["nse"]], abs=0.02)
    (tmp_path / "utt-00.npy").unlink()
    with pytest.raises(InputError, match=r"utt-00\.npy"):
        probe(tmp_path, speech, aligner, METRICS)


def test_saved_pickles_are_refused(speech: Path, aligner: Path, tmp_path: Path) -> None:
    for cut in read_cuts([speech]):
        np.save(tmp_path / f"{cut.id}.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="no frames of utterance"):
        probe(tmp_path, speech, aligner, METRICS)


def test_a_hugging_face_whisper_is_probed_by_the_command(speech: Path, aligner: Path, tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    torch.manual_seed(0)
    small = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8}
    small |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 100}
    small |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**small)).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path / "whisper")
    out = tmp_path / "metrics.json"
    arguments = ["probe", f"--encoder={tmp_path / 'whisper'}", f"--manifest={speech}", f"--aligner={aligner}", f"--out={out}"]
    done = CliRunner().invoke(
        app, [*arguments, "--min-alignment-score=-1000", "--seeds=1", "--layers=-1"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "synthetic speech" in done.output and "PAI" in done.output and '"frames_per_second": 50.0' in out.read_text()
    assert out.read_text().count('"spectrum"') == 3  # what enters the first block, and two blocks
    for frames in frames_of(tmp_path / "whisper", read_cuts([speech]), Features(), 60.0):
        seconds = len(frames.centres) / 50
        assert abs(seconds - next(cut.duration for cut in read_cuts([speech]) if cut.id == frames.id)) <= 0.02


@pytest.fixture(scope="module")
def whispers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One Whisper of random weights, as a Hugging Face folder and converted by CTranslate2."""
    pytest.importorskip("faster_whisper", reason="needs the extra `peers`")
    from ctranslate2.converters import TransformersConverter
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whisper")
    names = ["endoftext", "startoftranscript", "en", "transcribe", "translate", "nospeech", "notimestamps", "startofprev"]
    (folder / "vocab.json").write_text(json.dumps({f"<|{name}|>": i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    small = {
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "vocab_size": len(tokenizer),
    }
    small |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    small |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    for part in (WhisperForConditionalGeneration(WhisperConfig(**small)), tokenizer, WhisperFeatureExtractor()):
        part.save_pretrained(folder)
    TransformersConverter(str(folder), copy_files=["tokenizer.json"]).convert(str(folder / "converted"))
    return folder, folder / "converted"


def test_a_whisper_of_ctranslate2_gives_the_output_of_the_same_weights(speech: Path, whispers: tuple[Path, Path]) -> None:
    cuts = list(read_cuts([speech]))[:3]
    for full, converted in zip(*(frames_of(folder, cuts, Features(), 60.0) for folder in whispers), strict=True):
        assert len(full.layers) == 3 and len(converted.layers) == 1
        assert converted.layers[0].shape == full.layers[-1].shape
        assert np.allclose(converted.centres, full.centres, atol=1e-6)
        alike = torch.cosine_similarity(converted.layers[0], full.layers[-1])
        assert alike.min() > 0.99, "int8 weights and another feature extraction, no more"
    for cut, shorter in zip(cuts, frames_of(whispers[1], cuts, Features(), 60.0, window=2.0), strict=True):
        assert len(shorter.centres) == int(np.ceil(cut.duration * 50 - 1e-9))


def test_a_packaged_recogniser_is_found_by_its_name(
    speech: Path, aligner: Path, whispers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["probe", "--encoder=whisper-base", "--window=3", f"--manifest={speech}", f"--aligner={aligner}"]
    arguments += ["--out=metrics.json", "--min-alignment-score=-1000", "--seeds=1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and "--recogniser whisper-base" in done.output and not Path("metrics.json").exists()
    Path("results/peers").mkdir(parents=True)
    Path("results/peers/whisper-base").symlink_to(whispers[1])
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and '"frames_per_second": 50.0' in Path("metrics.json").read_text()


def test_audio_longer_than_whispers_window_is_refused(whispers: tuple[Path, Path]) -> None:
    from entropy_asr.evaluation.whisper import Whisper

    whisper = Whisper(whispers[1])
    assert len(whisper.frames(np.zeros(30 * 16000, dtype=np.float32))) == 1500
    with pytest.raises(InputError, match=r"30\.1 s"):
        whisper.frames(np.zeros(int(30.1 * 16000), dtype=np.float32))


def test_a_wav2vec_style_encoder_gives_frames(speech: Path, tmp_path: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7}
    Wav2Vec2Model(Wav2Vec2Config(**small, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    cut = next(iter(read_cuts([speech])))
    (frames,) = frames_of(tmp_path, [cut], Features(), 60.0)
    assert len(frames.layers) == 3 and frames.layers[0].shape == (len(frames.centres), 16)
    assert len(frames.centres) / cut.duration == pytest.approx(50, abs=1.5)


def test_what_is_no_encoder_is_named(speech: Path, aligner: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a model file of this project"):
        probe(tmp_path, speech, aligner, METRICS)
    with pytest.raises(InputError, match="does not exist"):
        probe(tmp_path / "none", speech, aligner, METRICS)
    with pytest.raises(InputError, match=r"metrics\.layers names \[7\]"):
        probe(aligner, speech, aligner, METRICS.model_copy(update={"layers": [7]}))


def test_utterances_are_dealt_once_and_each_part_has_some(speech: Path) -> None:
    cuts = list(read_cuts([speech]))
    dealt = deal(cuts)
    assert sorted(cut.id for part in dealt.values() for cut in part) == sorted(cut.id for cut in cuts)
    assert all(dealt.values()) and dealt == deal(cuts[::-1])


def test_memory_does_not_grow_with_the_frames() -> None:
    metrics = Metrics(frames=500, units=100, groups=4)
    item = Alignment("", ["HH", "AY"], [0.0, 0.5], [0.5, 1.0], [Unit("hi", 0, 1, "en")], 0.0)

    def peak(utterances: int) -> int:
        collector, rng = Collector(metrics), np.random.default_rng(0)
        tracemalloc.start()
        for i in range(utterances):
            layer = torch.from_numpy(rng.normal(size=(50, 64)).astype(np.float32))
            centres = (np.arange(50) + 0.5) / 50
            collector.update("test", Frames(f"u{i}", [layer, layer], centres), item, keep=False)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    once = peak(400)
    assert peak(4000) < 1.1 * once


def test_drift_is_by_layer_between_the_same_utterances(tmp_path: Path) -> None:
    from entropy_asr.analysis.cka import linear_cka
    from entropy_asr.training.engine import write_tensors

    torch.manual_seed(0)
    first, second, frames = torch.randn(300, 8), torch.randn(300, 6), json.dumps([100, 200])
    paths = [tmp_path / f"phoneme/seed-1/part-{i}.safetensors" for i in range(3)]
    for path, tensor, names in zip(paths, (first, second, first), ("ab", "ab", "cd"), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {"layer-0": tensor, "layer-1": tensor * 2}, {"utterances": json.dumps(list(names)), "frames": frames})
    rows = drift_rows(paths[:2])
    assert [(row["first"], row["second"], row["layer"]) for row in rows] == [
        ("phoneme/part-0", "phoneme/part-1", 0),
        ("phoneme/part-0", "phoneme/part-1", 1),
    ]
    assert rows[0]["cka"] == pytest.approx(linear_cka(first, second)) == pytest.approx(rows[1]["cka"])
    assert rows[0]["low"] <= rows[0]["cka"] <= rows[0]["high"]
    with pytest.raises(InputError, match="different utterances"):
        drift_rows(paths)


def test_measure_keeps_frames_of_the_test_set_alone(speech: Path, aligner: Path) -> None:
    from entropy_asr.analysis.alignment import align

    dealt, sets = deal(list(read_cuts([speech]))), {}
    for name, cuts in dealt.items():
        sets[name] = (cuts, {item.id: item for item in align(cuts, aligner, Features(), -1000, 60.0)[0]})
    _, kept = measure(aligner, sets, Features(), METRICS.model_copy(update={"drift_utterances": 3}))
    assert len(kept) == 3 and kept.keys() <= {cut.id for cut in dealt["test"]}
