"""Experiments and stages as files: YAML of the whole schema in, one JSON file a stage out.

A stage never sees the whole experiment: the workflow writes one JSON file a stage, with just the sections that the stage
lists in ``STAGE_SECTIONS``.  A parameter of alignment can therefore not make pretraining run again, and a stage that reads
a section it did not list fails at once.  The file also says, under ``made_by``, what else defines what the stage makes and is
no file of the workflow: versions of the code, splits, recorded audio and noise.

An experiment may be several files, each laid over those before it, as Snakemake's `--configfile a.yaml b.yaml` does.

    entropy-asr config check config/mini.yaml
    entropy-asr config check config/mini.yaml config/study.yaml
"""

import gzip
import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from entropy_asr.config import Config, Corpus, Llm
from entropy_asr.digests import Digests, files_in, listing_digest
from entropy_asr.errors import InputError, did_you_mean
from entropy_asr.files import sha256
from entropy_asr.versions import NORMALIZER_VERSION, PHONEMES_VERSION, STAGE_VERSIONS

# What each stage may read. A change in any other section does not run the stage again.
STAGE_SECTIONS: dict[str, list[str]] = {
    "unpack": [],
    "manifests": ["quality"],
    "phonemes": [],
    "units": ["units"],
    "tokenizer": ["llm", "prompt"],
    "small_tokenizer": ["small_llm", "prompt"],
    "feature_stats": ["features"],
    "precompute_features": ["features", "augment"],
    "lm": ["llm", "prompt", "engine"],
    "small_lm": ["small_llm", "prompt", "engine"],
    "pretrain": ["features", "augment", "encoder", "ctc", "pretrain", "cka", "engine"],
    "pretrain_attention": ["features", "augment", "encoder", "aed", "pretrain", "cka", "engine"],
    "align": ["features", "augment", "adaptor", "prompt", "align", "engine"],
    "ia_sft": ["features", "augment", "prompt", "cka", "ia_sft", "engine"],
    "joint_sft": ["features", "augment", "prompt", "cka", "ia_sft", "joint_sft", "engine"],
    # For an arm without alignment: its new adaptor, and the steps that it takes on.
    "joint_sft_alone": ["features", "augment", "adaptor", "prompt", "align", "cka", "ia_sft", "joint_sft", "engine"],
    "decode": ["features", "prompt", "decode"],
    "conditions": ["features", "hallucination"],
    "metrics": ["features", "metrics"],
    "score": [],
    "report": [],
    # Of one corpus, arm, test set or peer, as `manifests.<corpus>`.
    "arm": [],
    "test": [],
    "peer": [],
}
MADE_BY = "made_by"
# Source files that define what a stage makes, where that stage takes seconds: it runs again when one of them changes.
SOURCES = {
    "score": ["evaluation/score.py", "text/normalize.py", "text/scripts.py"],
    "report": ["reporting/*", "evaluation/*.py", "text/normalize.py", "text/scripts.py", "resampling.py", "files.py"],
}


def stage_names(config: Config) -> list[str]:
    """Names of all stage files of an experiment: `results/config/<name>.json`."""
    several = {"manifests": config.data.corpora, "arm": config.all_arms, "test": config.data.test, "peer": config.peers}
    return [
        name
        for stage in STAGE_SECTIONS
        for name in ([f"{stage}.{one}" for one in several[stage]] if stage in several else [stage])
    ]


def stage_json(config: Config, stage: str, repo: Path = Path(), digests: Digests | None = None) -> str:
    """The sections of one stage, and what else it is made by, as canonical JSON.

    A stage of the small LLM finds its section under the name `llm`: the same code makes both.

    Args:
        stage: of `stage_names`.
        repo: the repository as seen from the working directory; paths in a config are relative to it.
        digests: of files outside the workflow, as far as they are known; what is found out is added.
    """
    digests = Digests() if digests is None else digests
    kind, _, name = stage.partition(".")
    sections = {key.removeprefix("small_"): getattr(config, key).model_dump(mode="json") for key in STAGE_SECTIONS[kind]}
    if "augment" in sections:
        sections["augment"]["noise_folders"] = [_in(repo, folder) for folder in config.augment.noise_folders]
    sections[MADE_BY] = _made_by(config, kind, name, repo, digests)
    return json.dumps(sections, indent=1, sort_keys=True, ensure_ascii=False)


def _made_by(config: Config, kind: str, name: str, repo: Path, digests: Digests) -> dict[str, Any]:
    """What defines a stage's outputs beside its sections and the workflow's own files."""
    data = config.data
    splits = {"train": data.train, "dev": data.dev}
    tests = {test: data.test[test].model_dump(mode="json") for test in sorted(data.test)}
    normalizer, phonemes = {"normalizer": NORMALIZER_VERSION}, {"phonemes": PHONEMES_VERSION}
    pretrain = {**splits, **_noise(config, repo, digests)}
    facts: dict[str, Any] = {
        "unpack": {"max_utterances": config.quality.max_utterances},
        "phonemes": phonemes,
        "feature_stats": {"train": data.train},
        "units": {"train": data.train},
        "tokenizer": {"text": data.lm_text, **normalizer},
        "lm": {"text": data.lm_text, **_model(config.llm, repo, digests), **normalizer, **phonemes},
        "small_lm": {"text": data.lm_text, **_model(config.small_llm, repo, digests), **normalizer, **phonemes},
        "pretrain": pretrain,
        "metrics": {**splits, "test": tests, "aligner_seed": config.seeds[0]},
        "score": normalizer,
        "report": {**_compared(config), "test": tests, **normalizer},
    }
    facts["small_tokenizer"], facts["pretrain_attention"] = facts["tokenizer"], pretrain
    facts |= dict.fromkeys(("align", "ia_sft", "joint_sft", "joint_sft_alone"), pretrain)
    if kind == "manifests" and name:
        facts[kind] = {**_corpus(data.corpora[name], repo), **normalizer, **phonemes}
    elif kind == "arm" and name:
        facts[kind] = {"recipe": config.recipe(name).model_dump(mode="json")}
    elif kind == "test" and name:
        facts[kind] = tests[name]
    elif kind == "peer" and name:
        peer = config.peers[name]
        facts[kind] = {"peer": peer.model_dump(mode="json"), "files": _times(_in(repo, peer.path), ())}
    version = STAGE_VERSIONS.get(kind.removeprefix("small_").split("_attention")[0].removesuffix("_alone"))
    code = {"code": _source_digest(SOURCES[kind])} if kind in SOURCES else {}
    return {**facts.get(kind, {}), **({"version": version} if version else {}), **code}


def _corpus(corpus: Corpus, repo: Path) -> dict[str, Any]:
    """What a corpus is made of: of a recorded one the listings, and names, sizes and times of its files.

    The embedded corpus is known by the hashes in its SHA256SUMS, which are an input of its rule.
    """
    facts: dict[str, Any] = {"corpus": corpus.model_dump(mode="json")}
    if corpus.kind == "jsonl":
        folder = Path(_in(repo, corpus.path))
        listings = [path for split in corpus.splits for path in sorted(folder.glob(f"{split}.jsonl*")) if path.is_file()]
        facts["listings"] = {path.name: sha256(path) for path in listings}
        facts["files"] = _times(str(folder), tuple(map(str, listings)))
    return facts


@cache
def _times(folder: str, listings: tuple[str, ...]) -> str | None:
    """Digest of names, sizes and times of the files in a folder, and of audio elsewhere that listings name; None without it."""
    if not Path(folder).is_dir():
        return None
    elsewhere: set[str] = set()
    for path in listings:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            named = {name.decode() for line in file for name in re.findall(rb'"audio"\s*:\s*"((?:/|\.\./)[^"]*)"', line)}
        elsewhere |= {os.path.join(folder, name) for name in named}
    return listing_digest([*sorted(files_in(folder)), *sorted(elsewhere)], folder)


def _noise(config: Config, repo: Path, digests: Digests) -> dict[str, Any]:
    """Contents of the folders of recorded noise."""
    folders = {folder: _contents(_in(repo, folder), digests) for folder in config.augment.noise_folders}
    return {"noise": folders} if folders else {}


def _model(llm: Llm, repo: Path, digests: Digests) -> dict[str, Any]:
    """Contents of a pretrained language model's folder; a model known by its name has none."""
    folder = _in(repo, llm.pretrained) if llm.pretrained else ""
    return {"folder": _contents(folder, digests)} if Path(folder).is_dir() and folder else {}


def _contents(folder: str, digests: Digests) -> str | None:
    return digests.contents(folder) if Path(folder).is_dir() else None


def missing_folders(config: Config, repo: Path = Path()) -> list[str]:
    """Folders of recorded corpora and of noise that a config names and that are not there, as seen from the working directory."""
    named = [corpus.path for corpus in config.data.corpora.values() if corpus.kind == "jsonl"]
    return [_in(repo, path) for path in [*named, *config.augment.noise_folders] if not Path(_in(repo, path)).is_dir()]


def _compared(config: Config) -> dict[str, Any]:
    """What tables and report are about."""
    return {
        "name": config.name,
        "arms": config.arms,
        "seeds": config.seeds,
        "recipes": {arm: config.recipe(arm).model_dump(mode="json") for arm in config.all_arms},
        "peers": {name: peer.model_dump(mode="json") for name, peer in config.peers.items()},
        "train": config.data.train,
        "synthetic": {name: corpus.synthetic or corpus.kind == "embedded" for name, corpus in config.data.corpora.items()},
        "published": config.published,
    }


def _source_digest(patterns: list[str]) -> str:
    """SHA-256 over source files of this package."""
    package = Path(__file__).parent
    files = sorted({path for pattern in patterns for path in package.glob(pattern) if path.is_file()})
    return hashlib.sha256("\n".join(f"{path.relative_to(package)} {sha256(path)}" for path in files).encode()).hexdigest()


def _in(repo: Path, path: str) -> str:
    """A path of a config as seen from the working directory."""
    return os.path.normpath(repo / path)


def load_stage(path: str | Path) -> SimpleNamespace:
    """Read a stage's JSON file: a namespace of validated sections, with no others.

    Raises:
        InputError: a key is unknown or a value does not fit.
    """
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    raw.pop(MADE_BY, None)
    sections = {}
    for name, values in raw.items():
        field = Config.model_fields.get(name)
        if field is None:
            raise InputError(f"{path}: unknown section '{name}'{did_you_mean(name, Config.model_fields)}")
        sections[name] = _validate(field.annotation, values, str(path), name)
    return SimpleNamespace(**sections)


def load_config(source: str | Path | dict[str, Any], *overlays: str | Path) -> Config:
    """Read and validate an experiment from YAML files, later ones laid over (or from a mapping that Snakemake has read).

    Raises:
        InputError: a file is missing or not YAML, a key is unknown (with the nearest known one), or a value does not fit.
    """
    if isinstance(source, dict):
        return _validate(Config, source, "config", "")
    merged: dict[str, Any] = {}
    for path in (source, *overlays):
        merged = _laid_over(merged, _read_yaml(Path(path)))
    return _validate(Config, merged, " + ".join(map(str, (source, *overlays))), "")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config file {path} does not exist; the ones that ship are in config/")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Sections key by key, lists and values whole: what Snakemake does with several config files."""
    both = {
        key: _laid_over(below[key], above[key]) for key in below.keys() & above.keys() if _are_sections(below[key], above[key])
    }
    return {**below, **above, **both}


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _validate(model: Any, values: Any, where: str, prefix: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_human(item, model, prefix) for item in error.errors()]
        raise InputError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _human(item: Any, model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([prefix, *path] if prefix else path) or "(whole file)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(path[-1], _keys_beside(model, path))}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = item["input"] if not isinstance(item["input"], (dict, BaseModel)) else None
    return f"{key}: {message}" + (f" (found {shown!r})" if shown is not None else "")


def _keys_beside(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names that would have been allowed where the unknown key stands."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
