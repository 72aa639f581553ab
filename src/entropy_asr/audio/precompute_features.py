"""Log-Mel features of training audio, made once for every speed factor, beside the manifest that names them.

    python -m entropy_asr.audio.precompute_features --config stage.json --cuts train.jsonl.gz --out features/train

Training then reads them where it would have computed the same numbers from audio; noise and silence are still mixed with the
audio.  About 115 MB for an hour and a factor, float32.
"""

import hashlib
from pathlib import Path

import typer
from lhotse.cut import Cut

from entropy_asr.audio.augment import at_speed, speed_of
from entropy_asr.errors import InputError, friendly_exit


def stored_name(factor: float) -> str:
    """Under which name a cut holds its features at this speed."""
    return f"log_mel_{factor:g}"


def stored_log_mel(cut: Cut):
    """Features of a (speed-perturbed) cut as they were stored, (T, num_mel_bins) float32; None where there are none.

    Raises:
        InputError: the manifest names a file that is not there, or is damaged.
    """
    name = stored_name(speed_of(cut))
    if not cut.has_custom(name):
        return None
    try:
        return cut.load_custom(name)
    except (OSError, ValueError) as error:
        raise InputError(f"utterance {cut.id}: cannot read stored features: {error}; run precompute_features again") from error


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(config: Path = typer.Option(...), cuts: Path = typer.Option(...), out: Path = typer.Option(...)) -> None:
    """Write the features into the folder `out`, and their manifest to `out`.jsonl.gz."""
    from lhotse import NumpyFilesWriter
    from rich.progress import track

    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.audio.features import load_audio, log_mel
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import write_jsonl

    settings = load_stage(config)
    writer = NumpyFilesWriter(out)  # spreads files over folders by the first three characters of their names

    def with_features(cut: Cut) -> dict:
        file = hashlib.sha256(cut.id.encode()).hexdigest()[:32]  # an id may hold what a file name may not
        for factor in settings.augment.speed_factors:
            mel = log_mel(load_audio(at_speed(cut, factor), settings.features), settings.features)
            name = stored_name(factor)
            setattr(cut, name, writer.store_array(f"{file}-{name}", mel))
        return cut.to_dict()

    rows = map(with_features, track(read_cuts([cuts]), description=f"features of {cuts}"))
    write_jsonl(out.with_name(f"{out.name}.jsonl.gz"), rows)


if __name__ == "__main__":
    app()
