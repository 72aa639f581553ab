"""Two corpora whose splits all call their utterances 0001, 0002, …: nothing may take one for another."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from repository import ENVIRONMENT

from entropy_asr.analysis.alignment import SETS, Alignment, read_alignments
from entropy_asr.analysis.encoder_metrics import read_sets
from entropy_asr.analysis.frames import frames_of
from entropy_asr.audio.batches import read_cuts
from entropy_asr.audio.features import load_audio, log_mel
from entropy_asr.audio.precompute_features import stored_log_mel
from entropy_asr.config import Augment, Features, Quality
from entropy_asr.corpora.manifest import Kind, make_manifests
from entropy_asr.errors import InputError
from entropy_asr.evaluation.decode_peer import given
from entropy_asr.files import write_jsonl

SPLITS = ("train", "dev", "test")
TEXTS = {  # of 0001 and 0002
    ("one", "train"): ("call mother", "play music"),
    ("one", "dev"): ("stop", "open the door"),
    ("one", "test"): ("turn left", "what time is it"),
    ("two", "train"): ("go home", "close the window"),
    ("two", "dev"): ("send a message", "next song"),
    ("two", "test"): ("turn the light on", "how are you"),
}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By corpus and split."""
    folder, rng = tmp_path_factory.mktemp("repeated"), np.random.default_rng(0)
    for corpus in ("one", "two"):
        (folder / "corpora" / corpus).mkdir(parents=True)
        for split in SPLITS:
            rows = []
            for number, text in enumerate(TEXTS[corpus, split], 1):
                audio = folder / "corpora" / corpus / f"{split}-{number}.flac"
                soundfile.write(audio, 0.1 * rng.standard_normal(32000), 16000)
                rows.append({"id": f"{number:04d}", "audio": audio.name, "text": text, "language": "en"})
            write_jsonl(folder / "corpora" / corpus / f"{split}.jsonl", rows)
        make_manifests(Quality(), Kind.jsonl, folder / "corpora" / corpus, list(SPLITS), folder / "manifests" / corpus)
    return {key: folder / "manifests" / key[0] / f"{key[1]}.jsonl.gz" for key in TEXTS}


def test_ids_of_cuts_say_corpus_and_split(manifests: dict) -> None:
    cuts = read_cuts(list(manifests.values()))
    found = {cut.id: cut.supervisions[0].text for cut in cuts}
    assert found == {f"{c}/{s}/{n:04d}": text for (c, s), texts in TEXTS.items() for n, text in enumerate(texts, 1)}
    assert {cut.supervisions[0].custom["utterance_id"] for cut in cuts} == {"0001", "0002"}


def test_metrics_measure_each_set_on_its_own_utterances(manifests: dict, tmp_path: Path) -> None:
    wanted = {}
    for name, split in zip(SETS, SPLITS, strict=True):
        cuts = [cut for corpus in ("one", "two") for cut in read_cuts([manifests[corpus, split]])]
        wanted[name] = {cut.supervisions[0].text for cut in cuts}
        items = [Alignment(cut.id, cut.supervisions[0].custom["phonemes"], [], [], [], 0.0) for cut in cuts]
        write_jsonl(tmp_path / f"{name}.jsonl.gz", [item.row() for item in items])
    sets = read_sets(manifests.values(), tmp_path)
    for name, (cuts, aligned) in sets.items():
        assert {cut.supervisions[0].text for cut in cuts} == wanted[name]
        assert all(aligned[cut.id].phonemes == cut.supervisions[0].custom["phonemes"] for cut in cuts)


def test_alignment_ctc_reads_the_pronunciation_of_the_utterance(manifests: dict) -> None:
    from types import SimpleNamespace

    from entropy_asr.stages.sft import pronunciations

    heard: list[str] = []

    def encode(line: str, add_special_tokens: bool) -> SimpleNamespace:
        heard.append(line.strip())
        return SimpleNamespace(ids=[len(heard) - 1])

    cuts = read_cuts([manifests["one", "train"], manifests["two", "train"]])
    spoken = pronunciations(cuts, SimpleNamespace(backend_tokenizer=SimpleNamespace(encode=encode)))
    assert len(spoken) == len(cuts) == 4
    for cut in cuts:
        said = [phoneme for phoneme in heard[spoken[cut.id][0]].split() if phoneme in cut.supervisions[0].custom["phonemes"]]
        assert said == cut.supervisions[0].custom["phonemes"]


def test_stored_features_lie_apart_whatever_an_id_holds(manifests: dict, tmp_path: Path) -> None:
    """All manifests into one folder, as it could be configured; and an id that is a path out of it."""
    (tmp_path / "config.json").write_text(
        json.dumps({"features": Features().model_dump(), "augment": Augment(speed_factors=[1.0]).model_dump()})
    )
    cuts = [cut.to_dict() for cut in read_cuts(list(manifests.values()))]
    cuts[0]["id"] = "../../outside"
    write_jsonl(tmp_path / "all.jsonl.gz", cuts)
    command = [sys.executable, "-m", "entropy_asr.audio.precompute_features", "--config", str(tmp_path / "config.json")]
    command += ["--cuts", str(tmp_path / "all.jsonl.gz"), "--out", str(tmp_path / "features" / "all")]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    stored = read_cuts([tmp_path / "features" / "all.jsonl.gz"])
    assert len(list((tmp_path / "features" / "all").rglob("*.npy"))) == len(stored) == 12
    for cut in stored:
        assert np.array_equal(stored_log_mel(cut), log_mel(load_audio(cut, Features()), Features()))


def test_saved_frames_are_found_by_corpus_and_split(manifests: dict, tmp_path: Path) -> None:
    cuts = read_cuts(list(manifests.values()))
    for number, cut in enumerate(cuts):
        path = tmp_path / f"{cut.id}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((5, 2), number, np.float32))
    found = [frames.layers[0] for frames in frames_of(tmp_path, cuts, Features(), 60.0)]
    assert all(layer.eq(number).all() for number, layer in enumerate(found)) and isinstance(found[0], torch.Tensor)


def test_given_hypotheses_have_the_ids_of_the_listing(manifests: dict, tmp_path: Path) -> None:
    for split in ("one", "test"), ("two", "test"):
        cuts = list(read_cuts([manifests[split]]))
        theirs = [{"id": f"{n:04d}", "text": text} for n, text in reversed(list(enumerate(TEXTS[split], 1)))]
        write_jsonl(tmp_path / "theirs.jsonl", theirs)
        said = [text for text, _ in given(tmp_path / "theirs.jsonl", cuts)]
        assert said == [cut.supervisions[0].text for cut in cuts]


def test_an_id_that_occurs_twice_is_refused(manifests: dict, tmp_path: Path) -> None:
    cuts = [cut.to_dict() | {"id": "0001"} for cut in read_cuts([manifests["one", "train"]])]
    write_jsonl(tmp_path / "a.jsonl.gz", cuts[:1])
    write_jsonl(tmp_path / "b.jsonl.gz", cuts[1:])
    with pytest.raises(InputError, match=r"b\.jsonl\.gz: id '0001' occurs twice"):
        read_cuts([tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"])
    item = Alignment("0001", [], [], [], [], 0.0).row()
    write_jsonl(tmp_path / "fit.jsonl.gz", [item, item])
    with pytest.raises(InputError, match=r"line 2: utterance '0001' occurs twice"):
        read_alignments(tmp_path / "fit.jsonl.gz")
