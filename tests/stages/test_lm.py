"""The language model to start from: trained here, packed for shipping, and taken up again as a pretrained folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ENVIRONMENT, REPO

from entropy_asr.config_files import STAGE_SECTIONS, load_config
from entropy_asr.corpora.embedded.pack_lm import pack_lm
from entropy_asr.files import read_json, sha256, write_jsonl
from entropy_asr.models.artifacts import load_llm
from entropy_asr.stages.lm import hold_out
from entropy_asr.text.tokenizer import build

SENTENCES = [("turn on the light", "en"), ("turn the volume up", "en"), ("打开空调", "zh"), ("播放音乐", "zh")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, tokenizer, config and a model of a few steps in `project/results/text/lm`."""
    folder = tmp_path_factory.mktemp("lm")
    write_jsonl(folder / "text.jsonl", [{"language": language, "text": text} for text, language in SENTENCES])
    smoke = load_config(REPO / "config/smoke.yaml").model_dump(mode="json")
    smoke["llm"]["scratch"].update(vocab_size=400, hidden_size=32, layers=1, steps=6, batch_size=2)
    (folder / "config.json").write_text(json.dumps({section: smoke[section] for section in STAGE_SECTIONS["lm"]}))
    (folder / "tokenizer.stage.json").write_text(json.dumps({section: smoke[section] for section in STAGE_SECTIONS["tokenizer"]}))
    build(folder / "tokenizer.stage.json", folder / "text.jsonl", folder / "tokenizer")
    stage(folder, "results/text/lm", f"--text {folder / 'text.jsonl'} --tokenizer {folder / 'tokenizer'}")
    return folder


def stage(folder: Path, out: str, source: str) -> None:
    """Run the stage from the folder `project`."""
    (folder / "project").mkdir(exist_ok=True)
    words = f"--config {folder / 'config.json'} {source} --running {folder / 'state'} --out {out}"
    command = [sys.executable, "-m", "entropy_asr.stages.lm", *words.split()]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=folder / "project", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_packed_model_is_a_pretrained_folder_for_another_run(trained: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    made = trained / "project/results/text/lm"
    pack_lm(made, project / "data/lm")
    assert os.path.getsize(project / "data/lm/model.safetensors") < 0.6 * os.path.getsize(made / "model.safetensors")

    config = json.loads((trained / "config.json").read_text())
    config["llm"]["pretrained"] = "data/lm"
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage(tmp_path, "results/text/lm", "--folder data/lm")
    moved = tmp_path / "elsewhere"
    shutil.move(project, moved)  # another clone: the folder is named as seen from the artifact

    ours, tokenizer = load_llm(moved / "results/text/lm")
    original, _ = load_llm(made)
    assert ours.dtype == torch.float32
    for (name, now), (_, then) in zip(ours.named_parameters(), original.named_parameters(), strict=True):
        assert torch.equal(now, then.bfloat16().float()), name
    assert tokenizer.decode(tokenizer.encode("turn on 空调")) == "turn on 空调"


def test_its_hash_stands_for_it(trained: Path, tmp_path: Path) -> None:
    """lm.json is an input of later stages: another model makes it another file."""
    made = trained / "project/results/text/lm"
    hashes = {name: sha256(made / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert read_json(made / "lm.json") == {"pretrained": None, "revision": None, "sha256": hashes}


def test_no_sentence_is_held_out_and_trained_on() -> None:
    sentences = [(f"sentence {i % 200}", "en") for i in range(400)]
    train, held_out = hold_out(sentences, most=7)
    assert len(held_out) == 7 and not set(train) & set(held_out) and set(train) | set(held_out) == set(sentences)
    assert len(hold_out(sentences, most=1000)[1]) == 10
    assert hold_out(list(reversed(sentences)), most=7)[1] == held_out
    assert hold_out(sentences[:4], most=7) == (sentences[:4], [])
