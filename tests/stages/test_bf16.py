"""Every stage in bf16, as on GPUs: it trains, and what it hands over are the float32 master weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ENVIRONMENT, REPO
from safetensors.torch import load_file

from entropy_asr.config_files import STAGE_SECTIONS, load_config
from entropy_asr.files import write_json, write_jsonl
from entropy_asr.text.phonemes import write_tokens
from entropy_asr.text.tokenizer import build
from entropy_asr.text.units import train_units


class Stages:
    """Runs stages of a few steps on the tones, each with a folder of its name."""

    def __init__(self, folder: Path, tones: Path) -> None:
        self.folder, self.tones = folder, tones
        write_json(folder / "stats.json", {"mean": [-8.0] * 80, "std": [4.0] * 80, "frames": 1})
        self.tokens, self.units = write_tokens(folder / "tokens.txt"), folder / "units.json"
        train_units(["aa b ch", "ch aa"], word_pieces=3).save(str(self.units))
        write_json(folder / "lm/lm.json", {"pretrained": str(REPO / "data/lm"), "revision": None, "sha256": None})
        smoke = load_config(REPO / "config/smoke.yaml").model_dump(mode="json")
        smoke["encoder"].update(width=32, layers=1, feed_forward=32)
        smoke["aed"].update(layers=1)
        smoke["cka"].update(warmup_steps=1, every=1, threshold=0.0, max_parts=1)
        smoke["engine"].update(precision="bf16", log_every=1)
        smoke["llm"]["scratch"].update(vocab_size=400, hidden_size=32, layers=1, steps=2, warmup_steps=1, batch_size=2)
        for stage in ("pretrain", "align", "ia_sft", "joint_sft"):
            smoke[stage].update(steps=2, warmup_steps=1, max_duration=4, accumulation=2)
        self.smoke = smoke

    def config(self, stage: str) -> Path:
        path = self.folder / f"{stage}.json"
        path.write_text(json.dumps({section: self.smoke[section] for section in STAGE_SECTIONS[stage]}))
        return path

    def command(self, name: str, module: str, config: str, words: str) -> list[str]:
        line = (
            f"--config {self.config(config)} {words} --seed 1 --running {self.folder / 'state' / name} --out {self.folder / name}"
        )
        return [sys.executable, "-m", f"entropy_asr.stages.{module}", *line.split()]

    def run(self, name: str, module: str, config: str, words: str) -> dict[str, torch.Tensor]:
        """Returns the artifact's tensors."""
        out, command = self.folder / name, self.command(name, module, config, words)
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and all(0 < line["loss"] < 100 for line in lines)
        assert "--dev" not in words or 0 < lines[-1]["valid_loss"] < 100
        (artifact,) = (path for path in out.glob("*.safetensors") if path.name != "training_state.safetensors")
        return load_file(artifact)

    def data(self, objective: str) -> str:
        words = f"--train {self.tones} --dev {self.tones} --stats {self.folder / 'stats.json'} --part 0 --objective {objective}"
        return words + f" --labels {self.tokens if objective == 'phoneme' else self.units}"

    def pretraining(self, name: str) -> list[str]:
        """The command of phoneme pretraining under another name."""
        return self.command(name, "pretrain", "pretrain", self.data("phoneme"))

    def pretrain(self, objective: str) -> dict[str, torch.Tensor]:
        config = "pretrain" if objective == "phoneme" else "pretrain_attention"
        return self.run(objective, "pretrain", config, self.data(objective))

    def system(self, name: str, module: str, words: str) -> dict[str, torch.Tensor]:
        encoder = self.folder / "phoneme/encoder.safetensors"
        return self.run(
            name, module, module, f"--train {self.tones} --dev {self.tones} --encoder {encoder} --lm {self.folder / 'lm'} {words}"
        )


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, tones: Path) -> Stages:
    return Stages(tmp_path_factory.mktemp("bf16"), tones)


@pytest.fixture(scope="module")
def encoder(stages: Stages) -> dict[str, torch.Tensor]:
    return stages.pretrain("phoneme")


def assert_full_precision(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Float32, and not a float32 of bf16 roundings."""
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix) and tensor.is_floating_point()}
    assert found and all(tensor.dtype == torch.float32 for tensor in found.values())
    rounded = sum(int((tensor == tensor.bfloat16().float()).sum()) for tensor in found.values())
    assert rounded < 0.5 * sum(tensor.numel() for tensor in found.values())


def test_pretraining(stages: Stages, encoder: dict[str, torch.Tensor]) -> None:
    state = load_file(stages.folder / "phoneme/training_state.safetensors")
    for found in (encoder, stages.pretrain("attention")):
        assert_full_precision(found, "encoder.")
        assert_full_precision(found, "head.")
    for name, tensor in state.items():
        if name.startswith("weight."):
            assert torch.equal(tensor, encoder[name.removeprefix("weight.")]), name


def test_alignment_and_sft_hand_over_what_they_learned(stages: Stages, encoder: dict[str, torch.Tensor]) -> None:
    assert_full_precision(stages.system("align", "align", ""), "adaptor.")
    part = f"--iteration 0 --part {stages.folder / 'phoneme/part.json'} --previous {stages.folder / 'align'}"
    assert_full_precision(stages.system("ia_sft", "ia_sft", part), "llm.")
    gate = stages.folder / "gate-0.json"
    write_json(gate, {"iteration": str(stages.folder / "ia_sft")})
    joint = stages.system("joint_sft", "joint_sft", f"--gates {gate}")
    for prefix in ("encoder.", "adaptor.", "llm."):
        assert_full_precision(joint, prefix)
    frozen = stages.system("frozen_encoder", "joint_sft", f"--gates {gate} --freeze-encoder")
    for name, tensor in frozen.items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, encoder[name]), name


def test_the_small_language_model(stages: Stages) -> None:
    text = stages.folder / "text.jsonl"
    write_jsonl(text, [{"language": "en", "text": "turn on the light"}, {"language": "zh", "text": "打开空调"}] * 3)
    build(stages.config("tokenizer"), text, stages.folder / "tokenizer")
    assert_full_precision(stages.run("small", "lm", "lm", f"--text {text} --tokenizer {stages.folder / 'tokenizer'}"), "model.")
