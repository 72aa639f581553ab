"""Frames of any encoder, utterance by utterance and layer by layer, with the time that each stands for.

Four kinds of source, told apart by what they are: a model file of this project (a pretraining part, or a whole system), a
Hugging Face folder with a Whisper or wav2vec-style encoder, the folder of a Whisper converted by CTranslate2 (which gives its
output alone), a folder of saved frames.  Nothing in them is executed: weights are safetensors or CTranslate2's own format, saved
frames are plain `.npy`.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from entropy_asr.analysis.alignment import FIRST_CENTRE, MODEL_FRAMES
from entropy_asr.config import Features
from entropy_asr.errors import InputError
from entropy_asr.training.distributed import choose_device


class Frames(NamedTuple):
    """id: of the utterance; layers: (T, d) each, first what enters the first block, last the output; centres: (T,) seconds."""

    id: str
    layers: list[Tensor]
    centres: np.ndarray


def frames_of(source: Path, cuts: Iterable, features: Features, max_duration: float, window: float = 30.0) -> Iterator[Frames]:
    """Frames of the utterances, in any order.

    Args:
        max_duration: audio of one batch of a model of this project, seconds.
        window: seconds that a Whisper of CTranslate2 pads an utterance to.

    Raises:
        InputError: the source is none of the four kinds, or lacks an utterance.
    """
    if source.is_file():
        return _conformer(source, cuts, features, max_duration)
    if (source / "model.bin").is_file():
        return _ctranslate2(source, cuts, features, window)
    if (source / "config.json").is_file():
        return _hugging_face(source, cuts, features)
    if source.is_dir() and next(source.rglob("*.npy"), None):
        return _saved(source, cuts)
    raise InputError(
        f"{source}: expected a model file of this project (.safetensors), a Hugging Face folder with config.json, "
        "a Whisper converted by CTranslate2 (model.bin), or a folder of <id of the cut>.npy"
    )


def _conformer(path: Path, cuts: Iterable, features: Features, max_duration: float) -> Iterator[Frames]:
    """Ours, in batches: what an utterance gives does not depend on its batch."""
    from entropy_asr.audio.batches import evaluation_batches
    from entropy_asr.models.artifacts import load_encoder

    encoder = load_encoder(path).to(choose_device()).eval()
    seen: list[Tensor] = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for layer in encoder.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    for batch, mels, lens in evaluation_batches(cuts, features, max_duration):
        seen.clear()
        with torch.inference_mode():
            _, out_lens = encoder(mels.to(choose_device()), lens)
        utterances = zip(*(layer.float().cpu().split(out_lens.tolist()) for layer in seen), strict=True)
        for cut, layers in zip(batch, utterances, strict=True):
            centres = (MODEL_FRAMES * np.arange(len(layers[0])) + FIRST_CENTRE) * features.frame_shift
            yield Frames(cut.id, list(layers), centres)


def _hugging_face(folder: Path, cuts: Iterable, features: Features) -> Iterator[Frames]:
    """One utterance at a time: wav2vec-style models without an attention mask would otherwise hear the padding."""
    from transformers import AutoFeatureExtractor, AutoModel

    from entropy_asr.audio.features import load_audio

    try:
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a Hugging Face speech encoder with safetensors weights: {error}") from None
    if extractor.sampling_rate != features.sampling_rate:
        raise InputError(
            f"{folder} wants audio at {extractor.sampling_rate} Hz, features.sampling_rate is {features.sampling_rate}"
        )
    encoder = (model.get_encoder() if model.config.is_encoder_decoder else model).to(choose_device()).eval()
    name = "input_features" if model.main_input_name == "input_features" else "input_values"
    for cut in cuts:
        given = extractor(load_audio(cut, features), sampling_rate=extractor.sampling_rate, return_tensors="pt")[name]
        with torch.inference_mode():
            states = encoder(given.to(choose_device()), output_hidden_states=True).hidden_states
        window = cut.duration  # what the frames are spread over
        if name == "input_features":
            window = extractor.n_samples / extractor.sampling_rate  # Whisper pads to its window of 30 s
            if cut.duration > window:
                raise InputError(f"utterance {cut.id}: {cut.duration:.1f} s, the encoder hears {window:.0f} s; cut it")
        centres = (np.arange(states[0].size(1)) + 0.5) * window / states[0].size(1)
        real = centres < cut.duration
        yield Frames(cut.id, [state[0].float().cpu()[real] for state in states], centres[real])


def _ctranslate2(folder: Path, cuts: Iterable, features: Features, window: float) -> Iterator[Frames]:
    """The output of a Whisper's encoder, its only layer that CTranslate2 hands out."""
    from entropy_asr.audio.features import load_audio
    from entropy_asr.evaluation.whisper import FRAME_SAMPLES, RATE, Whisper

    if features.sampling_rate != RATE:
        raise InputError(f"{folder} wants audio at {RATE} Hz, features.sampling_rate is {features.sampling_rate}")
    whisper = Whisper(folder)
    for cut in cuts:
        output = torch.from_numpy(whisper.frames(load_audio(cut, features), window))
        yield Frames(cut.id, [output], (np.arange(len(output)) + 0.5) * FRAME_SAMPLES / RATE)


def _saved(folder: Path, cuts: Iterable) -> Iterator[Frames]:
    """`<corpus>/<split>/<id>.npy` of (T, d), or (layers, T, d); frames are spread evenly over the utterance."""
    for cut in cuts:
        path = folder / f"{cut.id}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: no frames of utterance {cut.id} ({error}); expected a (T, d) or (layers, T, d) array"
            ) from None
        if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise InputError(
                f"{path}: found {array.dtype} of shape {array.shape}; expected finite floats, (T, d) or (layers, T, d)"
            )
        layers = [torch.from_numpy(layer.astype(np.float32)) for layer in (array[None] if array.ndim == 2 else array)]
        yield Frames(cut.id, layers, (np.arange(len(layers[0])) + 0.5) * cut.duration / len(layers[0]))
