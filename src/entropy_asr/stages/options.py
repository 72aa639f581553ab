"""The command-line options that several stages share, under one name each."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Option("--config", help="sections of this stage, JSON")]
Train = Annotated[list[Path], typer.Option(help="training manifests")]
Dev = Annotated[list[Path], typer.Option(help="development manifests: validation loss")]
Encoder = Annotated[Path, typer.Option(help="encoder.safetensors of the pretraining part to use")]
Lm = Annotated[Path, typer.Option(help="folder with lm.json")]
Seed = Annotated[int, typer.Option(help="of weights, order and augmentation")]
Running = Annotated[Path, typer.Option(help="folder of the running state, kept until the artifact is written")]
Out = Annotated[Path, typer.Option(help="folder of the artifact")]
