"""Thirty short utterances whose sound depends on their words, and a tiny untrained encoder with a phoneme head."""

from pathlib import Path

import numpy as np
import pytest

WORDS = {
    "en": ["call", "mother", "father", "please", "two", "too", "to", "play", "music", "stop"],
    "zh": list("打开空调播放音乐他她"),
}


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest; each word is a chord of its own in noise."""
    import soundfile
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    from entropy_asr.text.phonemes import phonemize

    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    cuts = []
    for i in range(30):
        language = ("en", "zh")[i % 2]
        words = rng.choice(WORDS[language], size=rng.integers(3, 6)).tolist()
        tones = [np.sin(2 * np.pi * (200 + 90 * WORDS[language].index(w)) * np.arange(6400) / 16000) for w in words]
        samples = 0.2 * np.concatenate(tones) + 0.02 * rng.normal(size=6400 * len(words))
        path = folder / f"utt-{i:02d}.flac"
        soundfile.write(path, samples.astype(np.float32), 16000)
        recording = Recording.from_file(path)
        text = (" " if language == "en" else "").join(words)
        spoken = phonemize(text, language)
        custom = {"normalized": text, "phonemes": spoken.phonemes, "corpus_kind": "synthetic"}
        custom["words"] = [[word, len(phonemes)] for word, phonemes in spoken.words]
        said = {"text": text, "language": language, "speaker": "s", "custom": custom}
        supervision = SupervisionSegment(path.stem, path.stem, 0.0, recording.duration, **said)
        cuts.append(MonoCut(path.stem, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording))
    CutSet.from_cuts(cuts).to_file(folder / "speech.jsonl.gz")
    return folder / "speech.jsonl.gz"


@pytest.fixture(scope="session")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining part that has not learnt anything."""
    import torch

    from entropy_asr.config import Encoder
    from entropy_asr.models.artifacts import save_modules
    from entropy_asr.models.conformer import ConformerEncoder
    from entropy_asr.models.ctc import CtcHead
    from entropy_asr.text.phonemes import inventory

    torch.manual_seed(0)
    config = Encoder(width=32, layers=2, heads=2, feed_forward=64, conv_kernel=7, subsampling_channels=4, dropout=0.0)
    encoder = ConformerEncoder(config)
    for parameter in encoder.parameters():  # the residual branches start at zero: layers would be alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("aligner") / "encoder.safetensors"
    header = {"encoder": config.model_dump(), "num_mel_bins": 80, "head_layers": 1}
    header |= {"objective": "phoneme", "labels": inventory()}
    save_modules(path, {"encoder": encoder, "head": CtcHead(32, len(inventory()), 1)}, header)
    return path


@pytest.fixture(scope="session")
def tokenizer(speech: Path, tmp_path_factory: pytest.TempPathFactory):
    """Byte-level BPE of the transcripts."""
    from transformers import AutoTokenizer

    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.text.tokenizer import save_tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [cut.supervisions[0].custom["normalized"] for cut in read_cuts([speech])]
    save_tokenizer(train_tokenizer(texts, 300), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def models(aligner: Path, tokenizer) -> tuple:
    """System and prior: two untrained LLMs over one encoder."""
    import torch
    from transformers import Qwen3ForCausalLM

    from entropy_asr.config import Adaptor as AdaptorConfig
    from entropy_asr.config import Prompt, ScratchLM
    from entropy_asr.models.adaptor import Adaptor
    from entropy_asr.models.artifacts import load_encoder
    from entropy_asr.models.scratch_lm import scratch_lm_config
    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM

    torch.manual_seed(0)
    scratch = ScratchLM(hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=32)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    llms = [Qwen3ForCausalLM(scratch_lm_config(scratch, len(tokenizer), **ids)) for _ in range(2)]
    encoder, prompt = load_encoder(aligner), PromptIds.from_tokenizer(tokenizer, Prompt())
    adaptor = Adaptor(AdaptorConfig(hidden=32), 32, 32)
    return tuple(SpeechLLM(encoder, adaptor, llm, prompt).eval() for llm in llms)


@pytest.fixture(scope="session")
def sets(speech: Path, aligner: Path) -> dict:
    """The utterances, dealt and aligned."""
    from entropy_asr.analysis.alignment import align
    from entropy_asr.analysis.probe_command import deal
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.config import Features

    found = {}
    for name, cuts in deal(list(read_cuts([speech]))).items():
        found[name] = (cuts, {item.id: item for item in align(cuts, aligner, Features(), -1000, 60.0)[0]})
    return found
