"""Kokoro-82M (int8 ONNX): text -> phonemes -> 24 kHz audio, on one CPU thread.

    python -m entropy_asr.corpora.embedded.kokoro --assets assets --language zh --voice zf_xiaoxiao \
        --text 把温度调到二十二度 --output hello.wav

English phonemes are espeak-ng's IPA with the few replacements that kokoro-js makes; Mandarin ones come from misaki. A
voice is one of the published vectors, or a weighted average of two: `zf_xiaobei70-zm_yunxi30`. The int8 model was
measured to be faster here than the same weights in float32 (0.52 against 0.63 CPU-seconds a second of audio, AVX512).
"""

import argparse
import ctypes
import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from entropy_asr.corpora.embedded.grammar import load_grammar

SAMPLE_RATE = 24_000
MAX_TOKENS = 509
LATIN = re.compile(r"[A-Za-z][A-Za-z' ]*")
PUNCTUATION = re.compile(r"([,.?])")
ESPEAK_VOICES = {"a": "en-us", "b": "en"}
ESPEAK_TO_KOKORO = (
    ("kəkˈoːɹoʊ", "kˈoʊkəɹoʊ"),
    ("kəkˈɔːɹəʊ", "kˈəʊkəɹəʊ"),
    ("ʔn\u0329", "tn"),  # a syllabic n after a glottal stop, as in "gotten"
    ("n\u0329", "ᵊn"),
    ("ʲ", "j"),
    ("r", "ɹ"),
    ("x", "k"),
    ("ɬ", "l"),
)


class Espeak:
    """The espeak-ng library of `espeakng-loader`, asked for IPA only."""

    IPA = 2
    UTF8 = 1
    RETRIEVAL = 2

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        if self.library.espeak_Initialize(self.RETRIEVAL, 0, data, 0) < 0:
            raise RuntimeError("espeak-ng did not start")
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]

    def __call__(self, text: str, voice: str) -> str:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        position = ctypes.c_char_p(text.encode())
        clauses = []
        while position.value:
            clauses.append(self.library.espeak_TextToPhonemes(ctypes.byref(position), self.UTF8, self.IPA).decode())
        return " ".join(clauses).strip()


class Phonemiser:
    """Phoneme strings in Kokoro's symbols, for English, Mandarin, and Mandarin with English words in it."""

    def __init__(self) -> None:
        self.espeak = Espeak()
        self.respell = load_grammar()["respell"]

    @cache  # noqa: B019 - one phonemiser lives as long as its process
    def mandarin(self):
        """misaki's Mandarin front end; loading its dictionary takes a second."""
        from misaki import zh

        return zh.ZHG2P()

    def english(self, text: str, accent: str = "a") -> str:
        """Phonemes of English text; `accent` is the first letter of the voice's name."""
        text = re.sub(r"[A-Za-z']+", lambda m: self.respell.get(m[0], m[0]), text)
        pieces = [
            piece if PUNCTUATION.fullmatch(piece) else self.espeak(piece, ESPEAK_VOICES[accent])
            for piece in PUNCTUATION.split(text)
            if piece.strip()
        ]
        phonemes = re.sub(r" ?([,.?]) ?", r"\1 ", " ".join(pieces))
        for old, new in ESPEAK_TO_KOKORO:
            phonemes = phonemes.replace(old, new)
        phonemes = re.sub(r"(?<=[a-zɹː])(?=hˈʌndɹɪd)", " ", phonemes)
        if accent == "a":
            phonemes = re.sub(r"(?<=nˈaɪn)ti(?!ː)", "di", phonemes)
        return phonemes.strip()

    def __call__(self, text: str, language: str, voice: str) -> str:
        """Phonemes of a whole utterance, ended as a statement unless it is a question."""
        ended = text if text.endswith(("?", "？")) else text + "."
        if language == "en":
            return self.english(ended, voice[0])
        parts = []
        for piece in re.split(f"({LATIN.pattern})", ended):
            if LATIN.fullmatch(piece):
                parts.append(self.english(piece.strip()))
            elif piece:
                parts.append(self.mandarin()(piece)[0].strip())
        return re.sub(r" ([,.?])", r"\1", " ".join(parts))


class Kokoro:
    """The model, its symbol table and its voices."""

    def __init__(self, assets: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(assets / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.vocabulary = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        self.voices = assets / "voices"
        self.phonemise = Phonemiser()

    @cache  # noqa: B019 - one model lives as long as its process
    def voice(self, name: str) -> np.ndarray:
        """Style vectors of a voice, a row for each number of tokens; `a70-b30` is a weighted average."""
        mixed = re.findall(r"([a-z]{2}_[a-z]+)(\d+)?(?:-|$)", name)
        total = sum(float(weight or 100) for _, weight in mixed)
        vectors = (np.fromfile(self.voices / f"{base}.bin", np.float32).reshape(-1, 256) for base, _ in mixed)
        return sum(v * np.float32(float(weight or 100) / total) for v, (_, weight) in zip(vectors, mixed, strict=True))

    def tokens(self, text: str, language: str, voice: str) -> list[int]:
        """Symbol ids of an utterance; an unknown symbol is an error, because a phoneme would be lost."""
        phonemes = self.phonemise(text, language, voice)
        unknown = set(phonemes) - self.vocabulary.keys()
        if unknown or not 0 < len(phonemes) <= MAX_TOKENS:
            raise ValueError(f"{text!r} gives {phonemes!r}: unknown symbols {unknown} or a wrong length")
        return [self.vocabulary[symbol] for symbol in phonemes]

    def __call__(self, text: str, language: str, voice: str, speed: float) -> np.ndarray:
        """24 kHz float32 audio of `text`."""
        tokens = self.tokens(text, language, voice)
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": self.voice(voice)[len(tokens) - 1][None],
            "speed": np.array([speed], np.float32),
        }
        return self.session.run(None, feed)[0].ravel()


def main() -> None:
    """Say one sentence into a WAV file, to hear a voice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--language", choices=("en", "zh", "mixed"), default="en")
    parser.add_argument("--voice", default="af_heart")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--text", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    import soundfile

    audio = Kokoro(args.assets)(args.text, args.language, args.voice, args.speed)
    soundfile.write(args.output, audio, SAMPLE_RATE)


if __name__ == "__main__":
    main()
