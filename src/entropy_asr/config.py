"""The one typed schema of an experiment: every parameter, its default, its unit, its meaning.

Defaults are the paper's scale where the papers print a value; ``config/smoke.yaml`` and ``config/mini.yaml`` say what is
smaller.  The JSON schema and the reference page are generated from this file (``entropy-asr config docs``) and a test
fails when they drift.
"""

import re
from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from entropy_asr.errors import did_you_mean

Fraction = Annotated[float, Field(ge=0, le=1)]
ClusterStage = Literal["lm", "pretrain", "align", "ia_sft", "joint_sft", "decode", "metrics"]
ONE_PROCESS = ("lm", "decode", "metrics")
Objective = Literal["phoneme", "character", "attention"]
CTC_OBJECTIVES: tuple[Objective, ...] = ("phoneme", "character")
ENCODERS: dict[str, str] = {"phoneme": "encoder", "character": "encoder_character", "attention": "encoder_attention"}
"""What tables call a kind of pretraining, whose encoders several arms share."""
LM_FOLDERS = {"llm": "lm", "small_llm": "small_lm"}  # section of the config: folder in results/text


PADDED = 1.25
"""Most audio of a micro-batch with all its padding, over `max_duration`."""


DEFAULT = "mini"  # name of the experiment that Snakefile runs without a --configfile


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(Section):
    """An arm. Every arm takes the same number of encoder pretraining steps and of LLM-side steps: joint SFT takes those left out."""

    objective: Objective = Field(
        "phoneme",
        description="what encoder pretraining learns: phoneme or character, by CR-CTC (`ctc`); attention: characters by an "
        "attention decoder (`aed`)",
    )
    llm: Literal["llm", "small_llm"] = Field("llm", description="section of the config with its language model")
    align: bool = Field(
        True, description="alignment first; else joint SFT begins with a new adaptor and takes alignment's steps too"
    )
    ia_sft: bool = Field(True, description="IA-SFT beside pretraining; else joint SFT takes its steps")
    shares: str | None = Field(None, description="arm whose alignment and IA-SFT it goes on from; null: its own")
    train_encoder: bool = Field(True, description="the encoder learns in joint SFT")

    @model_validator(mode="after")
    def _ia_sft_is_aligned(self) -> "Recipe":
        if self.ia_sft and not self.align:
            raise ValueError("ia_sft needs align: it goes on from an aligned adaptor")
        return self


# The arms of method, section 4. `recipes` in a config adds to them.
RECIPES = {
    "ours": Recipe(),
    "no_ia_sft": Recipe(ia_sft=False),
    "char_ctc": Recipe(objective="character"),
    "aed": Recipe(objective="attention", ia_sft=False),
    "joint_only": Recipe(align=False, ia_sft=False),
    "frozen_encoder": Recipe(shares="ours", train_encoder=False),
    "small_llm": Recipe(llm="small_llm"),
}


class Corpus(Section):
    """Where speech comes from."""

    kind: Literal["embedded", "jsonl"] = Field(
        "jsonl", description="embedded: ships with the repository; jsonl: a file a split, a line an utterance"
    )
    path: str = Field(description="folder of the corpus, relative to the repository")
    splits: list[str] = Field(description="names of the splits; for jsonl `<path>/<split>.jsonl`")
    synthetic: bool = Field(False, description="speech made by a machine; said beside every number")


class TestSet(Section):
    """One column of the main table."""

    split: str = Field(description="`<corpus>/<split>`")
    language: Literal["en", "zh", "mixed"] = Field(description="picks the metric: en WER, zh CER, mixed MER")


class Data(Section):
    """Corpora, and what each is used for."""

    corpora: dict[str, Corpus] = Field(default_factory=dict, description="corpora by name")
    train: list[str] = Field(default_factory=list, description="training splits, `<corpus>/<split>`")
    dev: list[str] = Field(default_factory=list, description="development splits: CKA evaluation frames, validation loss")
    test: dict[str, TestSet] = Field(default_factory=dict, description="test sets by name")
    lm_text: str | None = Field(None, description="JSONL(.gz) of {language, text} for the small LM; test sentences are not in it")

    @model_validator(mode="after")
    def _splits_exist(self) -> "Data":
        known = {f"{name}/{split}" for name, corpus in self.corpora.items() for split in corpus.splits}
        named = [*self.train, *self.dev, *(t.split for t in self.test.values())]
        for split in named:
            if split not in known:
                raise ValueError(f"split '{split}' is not in data.corpora{did_you_mean(split, known)}")
        return self


class Quality(Section):
    """What an utterance must hold to be used; what fails is listed with its reason."""

    min_duration: PositiveFloat = Field(0.5, description="seconds")
    max_duration: PositiveFloat = Field(30.0, description="seconds")
    max_excluded_fraction: Fraction = Field(0.05, description="a split that loses more stops the run")
    max_speed: PositiveFloat = Field(
        1.1, description="fastest speed perturbation: an utterance must keep enough frames for its phonemes at it"
    )
    max_utterances: PositiveInt | None = Field(
        None, description="keep only so many utterances a split (seeded choice), for small runs"
    )


class Features(Section):
    """Log-Mel filterbanks (method, section 2)."""

    sampling_rate: PositiveInt = Field(16000, description="Hz; other audio is resampled")
    num_mel_bins: PositiveInt = Field(80, description="Mel channels")
    frame_length: PositiveFloat = Field(0.025, description="seconds")
    frame_shift: PositiveFloat = Field(0.01, description="seconds")


class Augment(Section):
    """Augmentation of training audio (method, section 3)."""

    speed_factors: list[PositiveFloat] = Field([0.9, 1.0, 1.1], description="speed perturbation, one drawn an utterance")
    noise_probability: Fraction = Field(0.2, description="share of samples with noise added [P]")
    noise_snr_mean: float = Field(10.0, description="dB [P]")
    noise_snr_std: float = Field(5.0, ge=0, description="dB [P]")
    noise_folders: list[str] = Field(
        default_factory=list,
        description="folders of recorded noise (wav, flac, opus), relative to the repository; "
        "empty: babble of training speech, and generated vehicle-like and music-like noise",
    )
    empty_fraction: Fraction = Field(
        0.0,
        description="share of the utterances of alignment and SFT that are replaced by noise or near silence of the same length, with an "
        "empty transcript, so that a system learns to answer nothing; the paper prints none [O]",
    )
    pad_max: float = Field(
        1.0,
        ge=0,
        description="most silence before and after, seconds, Beta(1,3)-distributed, put there before the noise is added [P]",
    )
    time_warp: int = Field(
        80,
        ge=0,
        description="frames at most that SpecAugment's time warp moves a point, and an eighth of the utterance at most; 0: none",
    )
    freq_masks: int = Field(2, ge=0, description="SpecAugment frequency masks")
    freq_mask_width: int = Field(27, ge=0, description="Mel channels at most")
    time_masks: int = Field(10, ge=0, description="SpecAugment time masks at most; CR-CTC takes 2.5 times as many at most")
    time_mask_width: int = Field(100, ge=0, description="frames of one time mask at most")
    time_mask_fraction: Fraction = Field(
        0.15,
        description="share of frames that time masks may cover; CR-CTC takes 2.5 times as much. Short utterances get fewer "
        "masks, and narrower ones only where no whole mask fits for each, as in lhotse",
    )


class Encoder(Section):
    """Conformer (Gulati et al., 2020); defaults give about 600M parameters."""

    width: PositiveInt = Field(1280, description="model dimension")
    layers: PositiveInt = Field(16, description="Conformer blocks")
    heads: PositiveInt = Field(20, description="attention heads")
    feed_forward: PositiveInt = Field(5120, description="width of the feed-forward modules")
    conv_kernel: PositiveInt = Field(33, description="depthwise convolution, frames, odd")
    subsampling_channels: PositiveInt = Field(32, description="channels of the 4x convolutional downsampling")
    dropout: Fraction = Field(0.1, description="dropout in every module; none of attention weights")

    @model_validator(mode="after")
    def _shapes(self) -> "Encoder":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads ({self.heads}): rotary positions turn pairs")
        if self.conv_kernel % 2 == 0:
            raise ValueError(f"conv_kernel {self.conv_kernel} must be odd")
        return self


class Ctc(Section):
    """CR-CTC head, of phonemes or of characters (Yao et al., 2024)."""

    head_layers: PositiveInt = Field(3, description="linear layers of the head")
    consistency: float = Field(0.2, ge=0, description="alpha, weight of the symmetric KL term [O]")


class Units(Section):
    """Text units of the objectives `character` and `attention`: single hanzi, and word pieces of other scripts."""

    word_pieces: PositiveInt = Field(
        1000, description="merged word pieces, beside the single characters of the training text [O: FireRedASR's number]"
    )


class Aed(Section):
    """Attention decoder of the objective `attention`: a Transformer as wide as the encoder, with its heads and feed-forward."""

    layers: PositiveInt = Field(6, description="Transformer layers [O: ESPnet's Conformer recipes]")
    label_smoothing: Fraction = Field(0.1, description="probability spread over all units (Szegedy et al., 2016)")


class Adaptor(Section):
    """From encoder frames to LLM embeddings."""

    stack: PositiveInt = Field(4, description="frames concatenated [P]")
    stride: PositiveInt = Field(4, description="frames from one LLM position to the next: 25 Hz to 6.25 Hz [P]; at most stack")
    hidden: PositiveInt = Field(2048, description="width of the MLP")

    @model_validator(mode="after")
    def _no_frame_left_out(self) -> "Adaptor":
        if self.stride > self.stack:
            raise ValueError(f"stride {self.stride} must not be above stack {self.stack}: frames would be left out")
        return self


class Optimisation(Section):
    """An optimiser, steps, and a warm-up that ends before them."""

    optimiser: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw [P], or muon: Muon for the matrices of linear layers, AdamW for the rest [O]"
    )
    muon_renew: PositiveInt = Field(
        1, description="steps that Muon goes on in one direction before it makes the next: its time over this [O]"
    )
    steps: PositiveInt
    warmup_steps: int

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        return self


class ScratchLM(Optimisation):
    """A small Qwen3-architecture LM trained on the corpus's text, for scales without a pretrained one."""

    vocab_size: PositiveInt = Field(3000, description="byte-level BPE units")
    hidden_size: PositiveInt = Field(256, description="model dimension")
    layers: PositiveInt = Field(4, description="decoder layers")
    heads: PositiveInt = Field(4, description="attention heads")
    kv_heads: PositiveInt = Field(2, description="key/value heads")
    intermediate_size: PositiveInt = Field(768, description="width of the MLP")
    pronunciation_fraction: Fraction = Field(
        0.85,
        description="share of training samples with phonemes in the user turn [O]: what a web-scale LLM knows of spelling and pinyin",
    )
    pronunciation_noise: Fraction = Field(
        0.0,
        description="share of told phonemes that are missed, doubled or misheard [O], as an encoder's would be; "
        "of one sentence anything up to twice as much",
        le=0.5,
    )
    pronunciation_blanks: NonNegativeFloat = Field(
        1.4, description="blanks after a told phoneme, on average [O], as in the adaptor's outputs; 0: none, no repetition"
    )
    blanks_ramp_epochs: NonNegativeInt = Field(
        0, description="epochs over which the blanks come in, evenly: to read is learned from short lines first [O]"
    )
    max_sentences: PositiveInt | None = Field(
        None, description="take only so many sentences of data.lm_text, evenly spread, for small runs"
    )
    steps: PositiveInt = Field(2000, description="optimiser steps")
    batch_size: PositiveInt = Field(64, description="sentences a step")
    peak_lr: PositiveFloat = Field(2e-3, description="peak learning rate")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up")


class Llm(Section):
    """The language model: a pretrained one by name or folder, else a small one made here."""

    pretrained: str | None = Field(
        "Qwen/Qwen3-1.7B", description="Hugging Face causal LM (name or local folder); null: train `scratch`"
    )
    revision: str | None = Field(None, description="commit of the pretrained model, to pin it")
    scratch: ScratchLM = Field(default_factory=ScratchLM)


class SmallLlm(Llm):
    """The language model of the arm `small_llm`, with about half the parameters of `llm`."""

    pretrained: str | None = Field("Qwen/Qwen3-0.6B", description="as in `llm`")


class Prompt(Section):
    """The chat around the speech; `<speech>` is where the embeddings go."""

    system: str = Field("Transcribe the speech.", description="system turn, names the task")
    user: str = Field("<speech>", description="user turn; holds one `<speech>`")

    @model_validator(mode="after")
    def _one_speech(self) -> "Prompt":
        if self.user.count("<speech>") != 1:
            raise ValueError(f"user turn {self.user!r} must hold exactly one <speech>")
        return self


class Schedule(Optimisation):
    """One stage's optimisation; Adam or Muon, cosine decay with linear warm-up."""

    steps: PositiveInt = Field(
        description="optimiser steps; for ia_sft of one iteration, the last also takes those of the parts that did not come"
    )
    peak_lr: PositiveFloat = Field(description="peak learning rate")
    warmup_steps: int = Field(10_000, ge=0, description="linear warm-up [P]")
    max_duration: PositiveFloat = Field(
        120.0, description="audio of one micro-batch a process, seconds; with all padding up to a quarter more"
    )
    accumulation: PositiveInt = Field(4, description="micro-batches an optimiser step [P]")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay [O]")
    beta2: float = Field(0.98, gt=0, lt=1, description="Adam's decay of the squared gradients' mean; small batches want more [O]")


class AlignSchedule(Schedule):
    """Alignment."""

    ctc_weight: float = Field(
        0.0,
        ge=0,
        description="weight of CTC of the adaptor's outputs on the LLM's embeddings of the pronunciation, for an LLM that was "
        "trained to read it, as the small one is [O]; 0: the transcript's loss alone [P]",
    )


class JointSchedule(Schedule):
    """Late joint SFT."""

    encoder_lr_scale: Fraction = Field(1.0, description="learning rate of the encoder relative to peak_lr; 0 keeps it still")


class Cka(Section):
    """When pretraining hands its encoder over (method, section 3)."""

    warmup_steps: PositiveInt = Field(500_000, description="the first reference is taken here [P]")
    every: PositiveInt = Field(10_000, description="steps between two measurements [P]")
    threshold: Fraction = Field(0.975, description="a part ends when CKA to the reference falls below [P]")
    max_parts: PositiveInt = Field(
        4, description="most parts, the last included; bounds the DAG, and times ia_sft.steps is what IA-SFT takes in all"
    )
    utterances: PositiveInt = Field(
        200, description="size of the fixed evaluation set, from the development splits; equal shares of each language"
    )


class Engine(Section):
    """How every stage runs."""

    precision: Literal["fp32", "bf16"] = Field("bf16", description="fp32 on CPUs, where bf16 is emulated")
    gradient_clip: PositiveFloat = Field(1.0, description="norm")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    workers: int = Field(4, ge=0, description="data-loading processes a rank")
    precompute_features: bool = Field(
        False,
        description="make the features of training audio once for every speed factor (115 MB an hour and factor); same numbers, "
        "and less work a step where the loader is what training waits for; on GPUs training reads the audio and computes them there",
    )
    buckets: PositiveInt = Field(10, description="length buckets of the sampler")
    log_every: PositiveInt = Field(50, description="steps a log line")
    validate_every: PositiveInt = Field(
        1000, description="steps between two measurements of the loss on development data; also measured at the end of a stage"
    )
    validate_utterances: PositiveInt = Field(
        200, description="development utterances that it is measured on, by the hash of their ids; sentences for the small LM"
    )
    save_every: PositiveInt = Field(
        1000,
        description="steps between two saves of the running state, but at most a quarter of the steps of a stage and of cka.every ...",
    )
    save_minutes: PositiveFloat = Field(30.0, description="... and minutes, whichever comes first")
    keep_last: PositiveInt = Field(2, description="running states that are kept")
    max_nonfinite: int = Field(10, ge=0, description="batches with a non-finite loss that are skipped before the run fails")


class Decode(Section):
    """Batched decoding."""

    max_duration: PositiveFloat = Field(120.0, description="audio a batch, seconds")
    num_beams: PositiveInt = Field(1, description="of the LLM, and of an encoder's CTC; 1: greedy")
    blank_penalty: NonNegativeFloat = Field(
        0.0,
        description="nats off the blank in an encoder's CTC: one that leaves out more phonemes than it invents; tune it on dev",
    )
    no_repeat_ngram: int = Field(
        0,
        ge=0,
        description="guard against loops: no run of so many tokens is said twice; 0: off. When on, the main table says so",
    )
    max_tokens_per_second: PositiveFloat = Field(12.0, description="longest transcript, tokens a second of audio ...")
    max_tokens_constant: PositiveInt = Field(12, description="... plus this many")

    @property
    def words(self) -> str:
        """As the main table says it."""
        search = "greedy" if self.num_beams == 1 else f"beam of {self.num_beams}"
        return search + (f", no {self.no_repeat_ngram}-gram twice" if self.no_repeat_ngram else "")


class Peer(Section):
    """Another system on the same test sets, through the same scorer; a row `measured` of the main table."""

    kind: Literal["ctranslate2", "huggingface", "hypotheses"] = Field(
        description="ctranslate2: a Whisper converted by CTranslate2 (needs the extra `peers`); huggingface: any speech-recognition "
        "model of transformers; hypotheses: files that another system wrote"
    )
    path: str = Field(
        description="folder or name of the model; `packaged` for the whisper-base of the embedded corpus' packages, "
        "`packaged-tiny.en` for an English whisper-tiny; for hypotheses the folder of `<test set>.jsonl`, lines of {id, text} "
        "with the ids of the corpus's listing"
    )
    window: PositiveFloat = Field(
        30.0,
        description="seconds that a ctranslate2 Whisper pads an utterance to; 30 is Whisper's own, less is faster "
        "(a transcript that loops is made again with 30)",
    )
    languages: list[Literal["en", "zh", "mixed"]] | None = Field(
        None, min_length=1, description="of the test sets that it is measured on; null: all"
    )
    encoder_metrics: bool = Field(
        False,
        description="measure NSE, PAI and CSAI of its encoder's output, too, for rows beside ours in entropy.csv; not of "
        "hypotheses, and of huggingface only where `path` is a folder",
    )

    @model_validator(mode="after")
    def _has_an_encoder(self) -> "Peer":
        if self.encoder_metrics and self.kind == "hypotheses":
            raise ValueError("encoder_metrics: hypotheses have no encoder to measure")
        return self

    @property
    def packaged(self) -> str | None:
        """Folder of `results/peers` where the model comes from a pinned package."""
        return {"packaged": "whisper-base", "packaged-tiny.en": "whisper-tiny.en"}.get(self.path)


class Hallucination(Section):
    """Test conditions that tempt to hallucinate, made from each test set (method, section 6)."""

    utterances: PositiveInt | None = Field(500, description="of each test set, in each condition (seeded choice); null: all")
    snr_db: list[float] = Field(
        [20.0, 10.0, 0.0], description="signal-to-noise ratios of babble, stationary and music-like noise, dB"
    )
    truncated_to: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="share of the utterance that is left")
    pause_seconds: PositiveFloat = Field(3.0, description="near silence put into the middle of the utterance, seconds")


class Metrics(Section):
    """Entropy-allocation metrics (method, section 5; docs/metrics.md)."""

    fit_utterances: PositiveInt = Field(
        2000, description="training utterances that probes are fitted on, by the hash of their ids"
    )
    held_out_utterances: PositiveInt = Field(1000, description="development utterances that end the fitting")
    test_utterances: PositiveInt = Field(2000, description="test utterances that are scored, of all test sets together")
    min_alignment_score: float = Field(
        -1.5, description="an utterance whose best path scores less is dropped, nats a frame; -1000 drops none"
    )
    layers: list[int] = Field(
        [-1],
        min_length=1,
        description="layers that are probed; 0: what enters the first block, -1: the output. NSE and CKA: always all",
    )
    frames: PositiveInt = Field(
        40_000, description="speech frames that probes are fitted on, ended by and scored on, each at most"
    )
    units: PositiveInt = Field(20_000, description="characters and words, or text tokens: the same")
    probe_seeds: PositiveInt = Field(3, description="probes a number")
    max_epochs: PositiveInt = Field(40, description="passes over the probe's samples at most")
    mlp_hidden: PositiveInt = Field(128, description="width of the probe that checks the linear one")
    groups: Annotated[int, Field(ge=2)] = Field(20, description="groups of utterances for the jackknife of NSE")
    resamples: PositiveInt = Field(1000, description="bootstrap resamples of utterances")
    drift_utterances: PositiveInt = Field(100, description="test utterances whose frames are kept for CKA between checkpoints")
    silence: bool = Field(False, description="count silent frames, too, in NSE and CKA")
    max_duration: PositiveFloat = Field(120.0, description="audio of one batch, seconds")


class StageResources(Section):
    """What one job of a stage asks for; what is not given is as in `resources`."""

    nodes: PositiveInt | None = Field(None, description="nodes")
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs a node; 0: CPU, one process a node")
    cpus: PositiveInt | None = Field(None, description="CPU cores a node")
    mem_mb: PositiveInt | None = Field(None, description="memory a node, MB")
    runtime: PositiveInt | None = Field(None, description="minutes")


class JobResources(NamedTuple):
    """The resources of one job, every value given; units as in `Resources`."""

    nodes: int
    gpus_per_node: int
    cpus: int
    mem_mb: int
    runtime: int


class Resources(Section):
    """What one training job asks for, on a cluster or on one machine; decoding, metrics and the small LM take one GPU and its share."""

    nodes: PositiveInt = Field(1, description="nodes")
    gpus_per_node: int = Field(0, ge=0, description="GPUs a node; 0: CPU, one process a node, even if a GPU is visible")
    device: Literal["cuda", "cpu"] = Field(
        "cuda", description="what a stage with GPUs computes on; a stage that finds no CUDA fails. cpu: only to try things out"
    )
    cpus: PositiveInt = Field(1, description="CPU cores a node")
    first_part_cpus: PositiveInt | None = Field(
        None,
        description="without GPUs: CPU cores of pretraining's first part, which nothing of an LLM can run beside; null: as the others",
    )
    last_part_cpus: PositiveInt | None = Field(
        None,
        description="the same for the last part that cka.max_parts allows, beside which only an iteration or two of IA-SFT can run",
    )
    mem_mb: PositiveInt = Field(3000, description="memory a node, MB; half as much more at each new attempt ...")
    max_mem_mb: PositiveInt | None = Field(None, description="... up to this, the node's; null: never more than mem_mb")
    runtime: PositiveInt = Field(120, description="minutes; a stage that needs longer saves, ends and goes on in its next job")
    warn_seconds: PositiveInt = Field(
        600, description="time left when Slurm warns a stage: enough for one step and one save, up to a minute less than said"
    )
    stages: dict[ClusterStage, StageResources] = Field(
        default_factory=dict, description="what a stage needs that differs, by name of the stage"
    )

    def pretrain_cpus(self, part: int, max_parts: int) -> int:
        """CPU cores a node of one part of pretraining."""
        own = {max_parts - 1: self.last_part_cpus, 0: self.first_part_cpus}.get(part)
        return own or self.of("pretrain").cpus

    def of(self, stage: ClusterStage) -> JobResources:
        """What one job of a stage asks for."""
        shared = {name: getattr(self, name) for name in JobResources._fields}
        if stage in ONE_PROCESS:
            share = max(1, self.gpus_per_node)
            shared |= {"nodes": 1, "gpus_per_node": min(1, self.gpus_per_node)}
            shared |= {"cpus": max(1, self.cpus // share), "mem_mb": max(1, self.mem_mb // share)}
        own = self.stages.get(stage, StageResources()).model_dump(exclude_none=True)
        return JobResources(**shared | own)

    @model_validator(mode="after")
    def _possible(self) -> "Resources":
        for stage in self.stages:
            asked = self.of(stage)
            if stage in ONE_PROCESS and (asked.nodes, asked.gpus_per_node) not in ((1, 0), (1, 1)):
                raise ValueError(f"stages.{stage} runs in one process: nodes must be 1, gpus_per_node 0 or 1")
        if (self.first_part_cpus or self.last_part_cpus) and self.of("pretrain").gpus_per_node:
            raise ValueError("first_part_cpus and last_part_cpus are for pretraining without GPUs: set stages.pretrain.cpus")
        if self.max_mem_mb is not None and self.max_mem_mb < self.mem_mb:
            raise ValueError(f"max_mem_mb {self.max_mem_mb} is below mem_mb {self.mem_mb}")
        return self


class Config(Section):
    """An experiment."""

    name: str = Field(
        "paper", description="name of the experiment: results lie in runs/<name>, those of mini in the repository itself"
    )
    seeds: list[int] = Field([1], min_length=1, description="one full run each")
    arms: list[str] = Field(
        ["ours", "no_ia_sft"],
        min_length=1,
        description=f"systems to compare (method, section 4), of {', '.join(RECIPES)} and `recipes`",
    )
    recipes: dict[str, Recipe] = Field(default_factory=dict, description="arms of your own, by name")
    data: Data = Field(default_factory=Data)
    quality: Quality = Field(default_factory=Quality)
    features: Features = Field(default_factory=Features)
    augment: Augment = Field(default_factory=Augment)
    encoder: Encoder = Field(default_factory=Encoder)
    ctc: Ctc = Field(default_factory=Ctc)
    units: Units = Field(default_factory=Units)
    aed: Aed = Field(default_factory=Aed)
    adaptor: Adaptor = Field(default_factory=Adaptor)
    llm: Llm = Field(default_factory=Llm)
    small_llm: SmallLlm = Field(default_factory=SmallLlm)
    prompt: Prompt = Field(default_factory=Prompt)
    pretrain: Schedule = Field(default_factory=lambda: Schedule(steps=2_000_000, peak_lr=5e-4))
    cka: Cka = Field(default_factory=Cka)
    align: AlignSchedule = Field(default_factory=lambda: AlignSchedule(steps=1_300_000, peak_lr=1e-3))
    ia_sft: Schedule = Field(default_factory=lambda: Schedule(steps=1_000_000, peak_lr=1e-5))
    joint_sft: JointSchedule = Field(default_factory=lambda: JointSchedule(steps=1_000_000, peak_lr=1e-5))
    engine: Engine = Field(default_factory=Engine)
    decode: Decode = Field(default_factory=Decode)
    hallucination: Hallucination = Field(default_factory=Hallucination)
    published: str | None = Field(
        None,
        description="CSV of published results, for rows `published` of the main table: system, test_set, split, metric, source",
    )
    peers: dict[str, Peer] = Field(default_factory=dict, description="other systems to measure, by the name of their row")
    metrics: Metrics = Field(default_factory=Metrics)
    resources: Resources = Field(default_factory=Resources)

    @model_validator(mode="after")
    def _name_is_a_folder(self) -> "Config":
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: {self.name!r} names the folder of the results: letters, digits and ._- only")
        return self

    @model_validator(mode="after")
    def _quality_knows_the_fastest_speed(self) -> "Config":
        fastest = max(self.augment.speed_factors, default=1.0)
        if fastest > self.quality.max_speed:
            raise ValueError(
                f"augment.speed_factors go up to {fastest}, quality.max_speed is {self.quality.max_speed}: "
                "utterances could become too short for their phonemes; raise max_speed"
            )
        return self

    @model_validator(mode="after")
    def _peers_are_no_arms(self) -> "Config":
        for name in self.peers:
            if name in (*RECIPES, *self.recipes) or name.startswith("encoder") or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                raise ValueError(
                    f"peers: '{name}' is the name of an arm, or holds more than letters, digits and ._-; choose another"
                )
        return self

    @property
    def folder(self) -> str:
        """Where the experiment's `results` folder lies, relative to the repository: the default's in the repository itself."""
        return "" if self.name == DEFAULT else f"runs/{self.name}"

    def tests_of_peer(self, name: str) -> list[str]:
        """Test sets that a peer is measured on."""
        known = self.peers[name].languages
        return [test for test in sorted(self.data.test) if known is None or self.data.test[test].language in known]

    def recipe(self, arm: str) -> Recipe:
        """How an arm is made."""
        return {**RECIPES, **self.recipes}[arm]

    def arms_with(self, stage: Literal["align", "ia_sft", "joint_sft"]) -> list[str]:
        """Arms that run a stage of their own; for align and ia_sft also those whose stages an arm shares."""
        if stage == "joint_sft":
            return list(self.arms)
        made = dict.fromkeys(self.recipe(arm).shares or arm for arm in self.arms)
        return [arm for arm in made if getattr(self.recipe(arm), stage)]

    @property
    def all_arms(self) -> list[str]:
        """The arms to compare, then those whose stages they share."""
        return list(dict.fromkeys([*self.arms, *self.arms_with("align"), *self.arms_with("ia_sft")]))

    @property
    def objectives(self) -> list[Objective]:
        """Kinds of encoder pretraining that the arms need."""
        return list(dict.fromkeys(self.recipe(arm).objective for arm in self.arms))

    @property
    def llms(self) -> dict[str, Llm]:
        """Language models that the arms need, by the name of their folder in results/text."""
        sections = dict.fromkeys(self.recipe(arm).llm for arm in self.arms)
        return {LM_FOLDERS[section]: getattr(self, section) for section in sections}

    def lm_of(self, arm: str) -> str:
        """Folder in results/text with an arm's language model."""
        return LM_FOLDERS[self.recipe(arm).llm]

    @model_validator(mode="after")
    def _arms_are_known(self) -> "Config":
        known = {**RECIPES, **self.recipes}
        taken = (*RECIPES, *get_args(Objective), *LM_FOLDERS.values(), "peers")
        for name in self.recipes:
            if name in taken or name.startswith("encoder") or not re.fullmatch(r"[a-z0-9_]+", name):
                raise ValueError(f"recipes: '{name}' is taken, or holds more than a-z, 0-9 and _; choose another name")
        for arm in [*self.arms, *(recipe.shares for recipe in self.recipes.values() if recipe.shares)]:
            if arm not in known:
                raise ValueError(f"arm '{arm}' is not known{did_you_mean(arm, known)}")
        for name, recipe in self.recipes.items():
            shared = known[recipe.shares] if recipe.shares else None
            same = ("objective", "llm", "align", "ia_sft")
            if shared and (shared.shares or not shared.align or any(getattr(shared, k) != getattr(recipe, k) for k in same)):
                raise ValueError(f"recipes.{name}: '{recipe.shares}' has no such stages of its own to share")
        return self

    @model_validator(mode="after")
    def _warmup_before_the_end(self) -> "Config":
        if self.cka.warmup_steps >= self.pretrain.steps:
            raise ValueError(f"cka.warmup_steps {self.cka.warmup_steps} must be below pretrain.steps {self.pretrain.steps}")
        return self
