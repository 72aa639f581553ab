"""Make audio that tempts a recogniser to hallucinate out of any test set: noise, silence, no speech, cut-off speech, long pauses.

    python -m entropy_asr.evaluation.conditions --config results/config/conditions.json --cuts …/en-test.jsonl.gz \
        --audio results/audio/conditions/english.flac --out results/manifests/conditions/english.jsonl.gz

All audio of a test set is one file, in which the cuts follow each other: thousands of small ones are slow to share.  The same
utterances in every condition, so that conditions can be compared; a cut's id is `<utterance>@<condition>`.  Every draw depends
on the utterance and the condition alone.  What counts as a hallucination is in `hallucination.py`.

| condition | audio | reference |
|---|---|---|
| `clean` | as it is | the transcript |
| `babble_10db`, `stationary_10db`, `music_10db`, … | noise over all of it, at this signal-to-noise ratio | the transcript |
| `pause` | so many seconds of near silence in the middle | the transcript |
| `truncated` | cut off after this share of its length | the transcript, of which the end cannot be heard |
| `silence` | noise at -80 dB of full scale, as long as the utterance | none |
| `stationary_only`, `music_only` | that noise alone, at -26 dB | none |

Babble is five other utterances of the test set at once.  Stationary noise (vehicle-like) and music-like noise are generated,
by the code that training noise comes from, with other draws.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import typer

from entropy_asr.audio.augment import NoiseSource, generator_for
from entropy_asr.config import Hallucination
from entropy_asr.errors import friendly_exit

log = logging.getLogger(__name__)

NoiseMaker = Callable[[np.random.Generator], np.ndarray]
SILENCE_RMS, NOISE_RMS = 1e-4, 0.05  # of full scale: -80 dB, -26 dB
NON_SPEECH = ("silence", "stationary_only", "music_only")


def add_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech with noise at a signal-to-noise ratio. samples, noise: (S,); noise is repeated to the length needed."""
    noise = np.resize(noise, len(samples))
    gain = np.sqrt(np.mean(samples**2) / max(np.mean(noise**2), 1e-12) / 10 ** (snr_db / 10))
    return samples + gain * noise


def with_pause(samples: np.ndarray, quiet: np.ndarray) -> np.ndarray:
    """`quiet` put in where the middle third is quietest, so that no word is cut in two where that can be helped."""
    frame = 400
    third = len(samples) // 3
    middle = samples[third : 2 * third]
    power = np.convolve(middle**2, np.ones(frame), mode="valid") if len(middle) > frame else np.zeros(1)
    at = third + int(power.argmin()) + min(frame, len(middle)) // 2
    return np.concatenate([samples[:at], quiet, samples[at:]])


def make_conditions(
    samples: np.ndarray, noise: NoiseSource, babble: NoiseMaker, utterance: str, config: Hallucination, rate: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(condition, samples) of one utterance. babble: of other utterances."""

    def rng(condition: str) -> np.random.Generator:
        return generator_for(0, 0, utterance, condition)

    sources = {"babble": babble, "stationary": noise.vehicle, "music": noise.music}
    yield "clean", samples
    for name, source in sources.items():
        for snr in config.snr_db:
            condition = f"{name}_{snr:g}db"
            yield condition, add_noise(samples, source(rng(condition)), snr)
    yield "pause", with_pause(samples, SILENCE_RMS * rng("pause").standard_normal(int(config.pause_seconds * rate)))
    yield "truncated", samples[: max(1, int(config.truncated_to * len(samples)))]
    yield "silence", SILENCE_RMS * rng("silence").standard_normal(len(samples))
    for condition in NON_SPEECH[1:]:
        draw = np.resize(sources[condition.removesuffix("_only")](rng(condition)), len(samples))
        yield condition, NOISE_RMS * draw / np.std(draw)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    cuts: Path = typer.Option(..., help="manifest of the test set"),
    audio: Path = typer.Option(..., help="FLAC to write, all conditions of all utterances one after the other"),
    out: Path = typer.Option(..., help="manifest to write, JSONL.gz"),
) -> None:
    """Write the audio and the manifest of all conditions of a test set."""
    import soundfile
    from lhotse import MonoCut, Recording, SupervisionSegment

    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.audio.features import load_audio
    from entropy_asr.config_files import load_stage
    from entropy_asr.corpora.manifest import choose
    from entropy_asr.files import write_jsonl

    settings = load_stage(config)
    rate = settings.features.sampling_rate
    everything = read_cuts([cuts])
    speech = list(everything)
    chosen = choose(speech, settings.hallucination.utterances)
    load = partial(load_audio, config=settings.features)
    noise = NoiseSource(load, everything, [], rate)
    pieces: list[tuple[str, float, SupervisionSegment]] = []
    written = 0  # samples
    audio.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(audio, "w", rate, 1, "PCM_16") as file:
        for cut in chosen:
            babble = partial(noise.babble, [other for other in speech if other.id != cut.id])
            for condition, samples in make_conditions(load(cut), noise, babble, cut.id, settings.hallucination, rate):
                name, spoken = f"{cut.id}@{condition}", cut.supervisions[0]
                file.write(np.clip(samples, -1.0, 1.0))
                custom = {"condition": condition, "corpus_kind": spoken.custom["corpus_kind"]}
                custom |= {"audio": str(audio), "audio_start": written / rate}
                text = "" if condition in NON_SPEECH else spoken.text
                said = SupervisionSegment(name, audio.stem, 0.0, len(samples) / rate, text=text, custom=custom)
                said.language, said.speaker = spoken.language, spoken.speaker
                pieces.append((name, written / rate, said))
                written += len(samples)
    whole = Recording.from_file(audio)
    write_jsonl(out, (MonoCut(name, start, said.duration, 0, [said], recording=whole).to_dict() for name, start, said in pieces))
    print(f"{out}: {len(chosen)} utterances in {len(pieces) // max(1, len(chosen))} conditions")


if __name__ == "__main__":
    app()
