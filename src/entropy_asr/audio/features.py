"""80-dim log-Mel filterbanks, and their global mean and standard deviation as an artifact.

python -m entropy_asr.audio.features --config feature_stats.json --cuts train.jsonl.gz --out stats.json
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import typer

from entropy_asr.config import Features
from entropy_asr.errors import InputError, friendly_exit

if TYPE_CHECKING:
    from torch import Tensor

Samples = TypeVar("Samples", int, "Tensor")

STATS_UTTERANCES = 2000  # enough: the standard error of a Mel channel's mean is then below a thousandth of its deviation


@lru_cache(maxsize=2)
def extractor(config: Features, device: str):
    """lhotse's filterbank for these settings, as a module from (N, S) samples and (N,) lengths to (N, T, num_mel_bins).

    The settings, window, frames and filters are lhotse's. The steps between are the same, in place, without the absolute value
    of complex numbers, which is a third of lhotse's time; `tests/audio/test_features.py` holds both equal.
    """
    import torch
    from lhotse.features.kaldi.layers import Wav2LogFilterBank

    class LogFilterBank(Wav2LogFilterBank):
        def __init__(self, **settings) -> None:
            super().__init__(**settings)
            self.floor = float(self._eps)
            self.left = (self.wav2win._length - self.wav2win._shift) // 2
            outside = torch.arange(-self.left, self.wav2win._length - self.left)  # samples before the first, and past the last
            self.register_buffer("place", outside + self.left)
            self.register_buffer("mirrored", -1 - outside)
            self.register_buffer("late", (outside >= 0).long())
            self.register_buffer("first", torch.zeros((), dtype=torch.long))

        def windows(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
            """(N, T, window): lhotse's mirror the audio at both ends; here each row is mirrored at its own."""
            length, shift = self.wav2win._length, self.wav2win._shift
            end = lens[:, None] * self.late
            inside = torch.clamp(end + self.mirrored, self.first, lens[:, None] - 1)
            padded = torch.nn.functional.pad(x, (self.left, length - self.left))
            padded.scatter_(1, end + self.place, x.gather(1, inside))
            return padded.unfold(1, length, shift)[:, : (x.size(1) + shift // 2) // shift]

        def forward(self, x: torch.Tensor, lens: torch.Tensor) -> torch.Tensor:
            window = self.wav2win
            frames = self.windows(x, lens)
            frames = frames - frames.mean(-1, keepdim=True)
            room = frames.new_empty(*frames.shape[:2], self.fft_length)  # else the FFT would copy all to pad it
            room[..., window._length :] = 0.0
            emphasised = room[..., : window._length]
            torch.sub(frames[..., 1:], frames[..., :-1], alpha=window.preemph_coeff, out=emphasised[..., 1:])
            torch.mul(frames[..., 0], 1 - window.preemph_coeff, out=emphasised[..., 0])
            emphasised *= window._window
            spectrum = torch.view_as_real(torch.fft.rfft(room))
            real, imaginary = spectrum.unbind(-1)
            power = real.square().addcmul_(imaginary, imaginary)
            return (power @ self._fb).clamp_(min=self.floor).log_()

    return LogFilterBank(
        sampling_rate=config.sampling_rate,
        frame_length=config.frame_length,
        frame_shift=config.frame_shift,
        num_filters=config.num_mel_bins,
    ).to(device)


def frame_shift(config: Features) -> int:
    """Samples from one frame to the next."""
    return extractor(config, "cpu").wav2win._shift


def num_frames(samples: Samples, config: Features) -> Samples:
    """Frames of so many samples."""
    shift = frame_shift(config)
    return (samples + shift // 2) // shift


def log_mel(samples: np.ndarray, config: Features) -> np.ndarray:
    """samples: (S,) float32 in [-1, 1]; returns (T, num_mel_bins) float32, a frame each `frame_shift` seconds."""
    import torch

    return extractor(config, "cpu")(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0].numpy()


def load_audio(cut, config: Features) -> np.ndarray:
    """The samples of a lhotse cut at the configured rate, (S,) float32.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend

    set_current_audio_backend(LibsndfileBackend())
    try:
        samples = cut.resample(config.sampling_rate).load_audio()[0]
    except Exception as error:  # lhotse and libsndfile raise many kinds, all of them about this one file
        source = cut.recording.sources[0].source
        raise InputError(f"utterance {cut.id}: cannot read audio {source}: {error}; run the manifests rule again") from error
    return np.asarray(samples, dtype=np.float32)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(config: Path = typer.Option(...), cuts: list[Path] = typer.Option(...), out: Path = typer.Option(...)) -> None:
    """Write the global mean and standard deviation of the training features."""
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.config_files import load_stage
    from entropy_asr.corpora.manifest import evenly
    from entropy_asr.files import atomic_write

    features = load_stage(config).features
    total, squares, frames = np.zeros(features.num_mel_bins), np.zeros(features.num_mel_bins), 0
    everything = list(read_cuts(cuts))
    for cut in evenly(everything, STATS_UTTERANCES):
        mel = log_mel(load_audio(cut, features), features).astype(np.float64)
        if not np.isfinite(mel).all():
            raise InputError(f"utterance {cut.id}: features are not finite; exclude it or mend its audio")
        total, squares, frames = total + mel.sum(0), squares + (mel**2).sum(0), frames + len(mel)
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 1e-6))
    atomic_write(out, json.dumps({"frames": frames, "mean": mean.tolist(), "std": std.tolist()}))


if __name__ == "__main__":
    app()
