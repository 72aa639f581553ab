"""Whisper through CTranslate2, on windows shorter than its own where asked: an independent ear for the corpus, and a peer.

Whisper pads every utterance to 30 seconds.  On utterances of a few seconds a window of 8 seconds gives nearly the same
transcripts five times faster.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np

from entropy_asr.errors import InputError

SIMPLIFIED_PROMPT = "以下是普通话的句子。"
RATE = 16_000  # Hz
FRAME_SAMPLES = 320  # 20 ms
LONGEST = 30  # seconds


class Whisper:
    """A Whisper converted by CTranslate2, int8, greedy, one thread."""

    def __init__(self, model: Path) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise InputError(
                "Whisper by CTranslate2 needs faster-whisper: pip install -c constraints.txt -e '.[peers]'"
            ) from None
        if not (model / "model.bin").is_file():
            raise InputError(f"{model}: no model.bin in it; expected the folder of a Whisper converted by CTranslate2")
        self.whisper = WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=1)

    @cache  # noqa: B019 - one Whisper lives as long as its process
    def prompt(self, language: str) -> tuple[int, ...]:
        """Start tokens; Mandarin begins with a sentence that makes Whisper write simplified characters."""
        tokenizer = self.tokenizer(language)
        start = (*tokenizer.sot_sequence, tokenizer.no_timestamps)
        if language == "en":
            return start
        return (tokenizer.sot_prev, *tokenizer.encode(SIMPLIFIED_PROMPT), *start)

    @cache  # noqa: B019
    def tokenizer(self, language: str):
        """Whisper's tokenizer, set to transcribe one language."""
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self.whisper.model.is_multilingual
        if language != "en" and not multilingual:
            raise InputError(
                f"this Whisper knows English only, and the speech is {language!r}; set `languages: [en]` for the peer"
            )
        return Tokenizer(self.whisper.hf_tokenizer, multilingual, task="transcribe", language=language)

    def __call__(self, audio: np.ndarray, language: str, window: float = 30.0) -> str:
        """Transcript of 16 kHz `audio` in English (en) or Mandarin (zh), padded to `window` seconds."""
        result = self.whisper.model.generate(
            self._encode(audio, window), [list(self.prompt(language))], beam_size=1, max_length=120
        )
        return self.tokenizer(language).decode(result[0].sequences_ids[0]).strip()

    def frames(self, audio: np.ndarray, window: float = 30.0) -> np.ndarray:
        """Encoder output on 16 kHz `audio`, (T, d) float32, a frame each 20 ms; what stands for padding is cut off.

        Raises:
            InputError: the audio is longer than Whisper's 30 seconds.
        """
        if len(audio) > LONGEST * RATE:
            raise InputError(f"{len(audio) / RATE:.1f} s of audio, Whisper hears {LONGEST} s; cut it")
        return np.array(self._encode(audio, window))[0, : math.ceil(len(audio) / FRAME_SAMPLES)]

    def _encode(self, audio: np.ndarray, window: float):
        """Encoder output on padded audio, (1, 50 frames a second, d), as CTranslate2 holds it."""
        import ctranslate2

        seconds = max(int(window), math.ceil(len(audio) / RATE))
        padded = np.pad(audio, (0, seconds * RATE - len(audio)))
        features = self.whisper.feature_extractor(padded, padding=0)[None, :, : seconds * 100]
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features, dtype=np.float32))
        return self.whisper.model.encode(view, to_cpu=True)
