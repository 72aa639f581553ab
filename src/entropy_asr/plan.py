"""What an experiment will cost, from its config alone: parameters, memory a GPU, steps, GPU-hours.

    entropy-asr plan config/paper.yaml --mfu 0.4

Nothing is trained or downloaded; the modules are built without storage.  Parameters, FLOPs of the matrix products, and memory
follow from the architecture and from the shape of the largest batch.  `plan` takes a shape from the bounds of a batch and a mean
utterance; `tests/test_plan.py` takes that of a real batch, and compares with what the real modules and engine hold.
"""

from dataclasses import dataclass
from typing import Any

from entropy_asr.config import PADDED, Config
from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Encoder as EncoderConfig
from entropy_asr.errors import InputError
from entropy_asr.models.conformer import subsampled_length
from entropy_asr.models.flops import encoder_flops, llm_flops
from entropy_asr.text.phonemes import inventory
from entropy_asr.training.engine import REDUCE_BUCKET

FRAMES_PER_SECOND = 25.0
MEAN_SECONDS = 8.0  # [O] of an utterance
TEXT_TOKENS_PER_SECOND = 4.0  # [O] about three words, or four to five hanzi, a second
PHONEMES_PER_SECOND = 12.0  # [O]
PROMPT_TOKENS = 20
STAGES = ("pretrain", "align", "ia_sft", "joint_sft")
TRAINED = {"align": ("adaptor",), "ia_sft": ("adaptor", "llm"), "joint_sft": ("encoder", "adaptor", "llm")}
MASTER_AND_MOMENTS = 12  # bytes a trained parameter: float32 weight and two Adam moments
GRADIENT = 4  # bytes a trained parameter: accumulated in float32

# Architectures of the LLMs that the configs name, so that planning needs no network (from their published config.json).
_QWEN3 = {
    "Qwen/Qwen3-0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
    "Qwen/Qwen3-1.7B": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144},
    "Qwen/Qwen3-4B": {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
}


def llm_config(config: Config):
    """The transformers configuration of the config's LLM.

    Raises:
        InputError: a pretrained LLM that is neither known here nor a local folder.
    """
    from pathlib import Path

    from transformers import AutoConfig, Qwen3Config

    from entropy_asr.models.scratch_lm import scratch_lm_config

    name, scratch = config.llm.pretrained, config.llm.scratch
    if name is None:
        return scratch_lm_config(scratch, scratch.vocab_size)
    if name in _QWEN3:
        return Qwen3Config(vocab_size=151_936, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, **_QWEN3[name])
    if Path(name).is_dir():
        return AutoConfig.from_pretrained(name)
    raise InputError(f"llm.pretrained: {name!r} is no local folder, and its size is not known here ({', '.join(_QWEN3)})")


def parameters(config: Config) -> dict[str, int]:
    """Parameters of encoder, phoneme head, adaptor and LLM."""
    import torch
    from transformers import AutoModelForCausalLM

    from entropy_asr.models.adaptor import Adaptor
    from entropy_asr.models.conformer import ConformerEncoder
    from entropy_asr.models.ctc import CtcHead

    llm = llm_config(config)
    with torch.device("meta"):
        modules = {
            "encoder": ConformerEncoder(config.encoder, config.features.num_mel_bins),
            "phoneme head": CtcHead(config.encoder.width, len(inventory()), config.ctc.head_layers),
            "adaptor": Adaptor(config.adaptor, config.encoder.width, llm.hidden_size),
            "llm": AutoModelForCausalLM.from_config(llm),
        }
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


@dataclass(frozen=True)
class BatchShape:
    """What a micro-batch takes memory for; all rows are as long as the longest.

    rows: utterances times copies; frames: input frames (10 ms) of a row; positions: of all rows in the LLM, 0 without one;
    targets: ids of all utterances, their ends not counted.
    """

    rows: int
    frames: int
    positions: int
    targets: int

    @property
    def packed(self) -> int:
        """Frames of all rows in the encoder's blocks."""
        return self.rows * subsampled_length(self.frames)


@dataclass(frozen=True)
class Arithmetic:
    """How a stage computes.

    size: bytes of a weight and of an activation; gpu: else the CPU, whose kernels keep more; checkpointing: blocks are computed
    again in the backward pass, from their inputs.
    """

    size: int
    gpu: bool
    checkpointing: bool

    @property
    def mask(self) -> int:
        """Bytes of an element of dropout's mask: a boolean on a GPU."""
        return 1 if self.gpu else self.size


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of a stack of blocks.

    kept: from the forward pass on; again: of one block that is computed again in the backward pass, else 0; gradients: of
    activations, in the backward pass of one block, at most.
    """

    kept: float
    again: float
    gradients: float

    @property
    def most(self) -> float:
        """When the backward pass begins."""
        return self.kept + self.again + self.gradients


def encoder_activations(config: EncoderConfig, batch: BatchShape, how: Arithmetic) -> Activations:
    """Of the Conformer blocks, without their first input.

    What a block keeps, in widths D and feed-forward widths F a frame (a norm also keeps two numbers in float32):

    - each of two feed-forwards: normed input D, before and after the activation 2 F, the sum that goes on D;
    - attention: normed input D, queries, keys and values 3 D, rotated queries and keys 2 D, output D (twice on a CPU, where rows
      are computed apart), the sum D; a number a head in float32;
    - convolution: normed input D, before and after the gate 3 D, the latter with zeros between utterances D, the convolution's
      output D, that normed D and activated D, the sum D;
    - the last norm: its output D;
    - dropout: a mask of F and one of D a feed-forward, D each of attention and convolution.
    """
    frames, width, hidden = batch.packed, config.width, config.feed_forward
    block = frames * how.size * ((22 if how.gpu else 23) * width + 4 * hidden)
    block += (batch.rows - 1) * (config.conv_kernel // 2) * width * how.size
    block += frames * 4 * (2 * 6 + config.heads)
    if config.dropout:
        block += frames * how.mask * (4 * width + 2 * hidden)
    gradients = frames * how.size * (2 * width + hidden)
    if how.checkpointing:
        return Activations(config.layers * frames * width * how.size, block, gradients)
    return Activations(config.layers * block, 0.0, gradients)


def subsampling_bytes(config: EncoderConfig, mels: int, batch: BatchShape, how: Arithmetic) -> float:
    """What the convolutions before the blocks keep of the padded batch: inputs of both and of the linear layer, rotary angles."""
    half = (batch.frames - 1) // 2
    a_row = batch.frames * mels + config.subsampling_channels * half * ((mels - 1) // 2)
    a_row += config.subsampling_channels * subsampled_length(batch.frames) * subsampled_length(mels)
    angles = batch.packed * (2 * config.width // config.heads * how.size + 3 * 8)
    dropout = batch.packed * config.width * how.mask if config.dropout else 0
    return batch.rows * a_row * how.size + angles + dropout + batch.packed * config.width * how.size


def frozen_encoder_bytes(config: EncoderConfig, mels: int, batch: BatchShape, how: Arithmetic) -> float:
    """The most that a forward pass without autograd holds: in the convolutions, or in a feed-forward of a block."""
    half = (batch.frames - 1) // 2
    convolutions = config.subsampling_channels * (
        half * ((mels - 1) // 2) + subsampled_length(batch.frames) * subsampled_length(mels)
    )
    block = batch.packed * (3 * config.width + 2 * config.feed_forward)
    return how.size * max(batch.rows * (batch.frames * mels + convolutions), block)


def llm_activations(llm: Any, positions: float, how: Arithmetic, trained: bool) -> Activations:
    """Of the LLM's layers, with the norm behind them.

    What a layer keeps a position, in widths D, of all query heads Q, of all key heads K, of the MLP M:

    - RMSNorm of D, Q and K: its input in float32; if it trains, what it multiplies with its weight, too;
    - both normed inputs D of projections that train;
    - attention: rotated queries Q and keys K, values K, output Q (again on a CPU if the next projection trains, as rows are
      computed apart);
    - gated MLP: gate, activated gate and the other half 3 M, their product M if it trains.
    """
    q, kv = llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim
    width, mlp, size = llm.hidden_size, llm.intermediate_size, how.size
    normed = 2 * width + q + kv
    layer = 4 * normed + size * (2 * q + 2 * kv + 3 * mlp)
    layer += 4 * (2 + 2 * llm.num_attention_heads + llm.num_key_value_heads)  # a number a norm, and a head of attention
    if trained:
        layer += size * (normed + 2 * width + mlp + (0 if how.gpu else q))
    last = positions * width * (4 + (size if trained else 0))
    angles = positions * 2 * llm.head_dim * size
    gradients = positions * size * (width + (2 if trained else 3) * mlp)
    layers = llm.num_hidden_layers
    if how.checkpointing:
        return Activations(layers * positions * width * size + last + angles, positions * layer, gradients)
    return Activations(layers * positions * layer + last + angles, 0.0, gradients)


def adaptor_bytes(config: AdaptorConfig, encoder_width: int, llm_width: int, batch: BatchShape, size: int) -> float:
    """What the adaptor keeps: stacked frames, also normed, and its hidden layer before and after the activation."""
    speech = batch.rows * -(-subsampled_length(batch.frames) // config.stride)
    return size * speech * (2 * config.stack * encoder_width + 2 * config.hidden + llm_width)


@dataclass(frozen=True)
class Moment:
    """Bytes that a process holds at one time of a stage.

    weights: of all modules, as they compute; optimiser: float32 weights and two moments of what it trains; gradients: of this
    micro-batch and those before it, with the buffers of their reduction; activations: what autograd keeps, and its gradients.
    """

    name: str
    weights: float
    optimiser: float
    gradients: float
    activations: float

    @property
    def bytes(self) -> float:
        return self.weights + self.optimiser + self.gradients + self.activations


def memory(config: Config, stage: str, batch: BatchShape, gpu: bool = True, processes: int = 1) -> Moment:
    """Where a stage of arm `ours` holds most, of one process: what has to fit the card.

    Without the CUDA context, the work space of kernels, and the allocator's fragmentation.  `training.memory` measures the same.
    """
    return max(_moments(config, stage, batch, gpu, processes), key=lambda moment: moment.bytes)


def _moments(config: Config, stage: str, batch: BatchShape, gpu: bool, processes: int) -> list[Moment]:
    """All that may be the most.

    Between two of them activations go and gradients come, each evenly, so that nothing between is above both.
    """
    how = Arithmetic(2 if config.engine.precision == "bf16" else 4, gpu, config.engine.activation_checkpointing)
    sizes, schedule = parameters(config), getattr(config, stage)
    modules = ("encoder", "phoneme head") if stage == "pretrain" else ("encoder", "adaptor", "llm")
    learned = sum(sizes[name] for name in (modules if stage == "pretrain" else TRAINED[stage]))
    weights, share = sum(sizes[name] for name in modules), learned / processes
    features = 4 * batch.rows * batch.frames * config.features.num_mel_bins
    alone = _largest_parameter(config) if "llm" in TRAINED.get(stage, ()) else 0

    # Made in float32, and rounded parameter by parameter.
    found = [Moment("construction", 4 * weights, 0.0, 0.0, 0.0)]
    for name, activations, done in (_of_pretraining if stage == "pretrain" else _of_a_system)(config, stage, batch, how, sizes):
        gradients = gradient_bytes(done, learned, alone, schedule.accumulation, how, processes)
        found.append(Moment(name, how.size * weights, MASTER_AND_MOMENTS * share, gradients, features + activations))
    # Gradients in float32 lie apart, and become one tensor for the optimiser. In bf16 their sum is one from the start.
    step = GRADIENT * share * (2 if how.size == GRADIENT else 1)
    if schedule.optimiser == "muon":  # the whole gradient with momentum, its factors, and these scaled
        step += GRADIENT * (learned + 2 * share)
    found.append(Moment("optimiser step", how.size * weights, MASTER_AND_MOMENTS * share, step, features))
    return found


def _of_pretraining(config: Config, _stage: str, batch: BatchShape, how: Arithmetic, sizes: dict[str, int]) -> list[tuple]:
    """(name, bytes of activations, parameters that have a gradient) at moments of the forward and backward pass."""
    blocks = encoder_activations(config.encoder, batch, how)
    before = subsampling_bytes(config.encoder, config.features.num_mel_bins, batch, how)
    out = batch.packed * config.encoder.width * how.size
    head = (2 * config.ctc.head_layers - 1) * out  # input of each layer, and before each activation
    losses = cr_ctc_bytes(batch.packed, len(inventory()), 2 * batch.targets / batch.rows)
    return [
        ("loss", before + blocks.kept + head + losses, 0),
        ("encoder", before + blocks.most + out, sizes["phoneme head"]),
        ("end", 0.0, sizes["phoneme head"] + sizes["encoder"]),
    ]


def _of_a_system(config: Config, stage: str, batch: BatchShape, how: Arithmetic, sizes: dict[str, int]) -> list[tuple]:
    """The same for alignment, IA-SFT and joint SFT."""
    llm, mels, trained = llm_config(config), config.features.num_mel_bins, TRAINED[stage]
    layers = llm_activations(llm, batch.positions, how, "llm" in trained)
    below = adaptor_bytes(config.adaptor, config.encoder.width, llm.hidden_size, batch, how.size)
    if stage == "align" and config.align.ctc_weight:
        below += pronunciation_bytes(config, batch)
    found = []
    if "encoder" in trained:
        blocks = encoder_activations(config.encoder, batch, how)
        before = subsampling_bytes(config.encoder, mels, batch, how)
        out = batch.packed * config.encoder.width * how.size
        below += before + blocks.kept + out
        found.append(("encoder", before + blocks.most + out, sizes["llm"] + sizes["adaptor"]))
    else:
        found.append(("encoder, forward", frozen_encoder_bytes(config.encoder, mels, batch, how), 0))
    # Logits of the answers in float32: their log-softmax, its gradient, and theirs.
    answers = batch.targets + batch.rows
    logits = answers * (3 * 4 * llm.vocab_size + how.size * llm.hidden_size)
    # The LM head is the embedding: its gradient waits for the other's.
    head = how.size * _largest_parameter(config) if "llm" in trained else 0
    done = sizes["llm"] if "llm" in trained else 0
    return [
        *found,
        ("loss", below + layers.kept + logits, 0),
        ("llm", below + layers.most + head, 0),
        ("embedding", below + head + batch.positions * llm.hidden_size * how.size, done),
        ("end", 0.0, sum(sizes[name] for name in trained)),
    ]


def _largest_parameter(config: Config) -> int:
    """Of the LLM: its table of embeddings."""
    llm = llm_config(config)
    return llm.vocab_size * llm.hidden_size


def gradient_bytes(done: int, learned: int, largest: int, accumulation: int, how: Arithmetic, processes: int) -> float:
    """Gradients in ZeRO-2 when the backward pass of a step's last micro-batch has come to `done` of `learned` parameters.

    The sum over micro-batches, in float32, is shared by the processes.  The gradients that come are reduced when there are
    `REDUCE_BUCKET` of them, and at the end: copied to one tensor, in bf16 also to a float32 one.  Until the end they stay: on a
    GPU in two buckets and in a partition of float32 gradients, on a CPU as they are; a parameter above a bucket, alone.
    """
    low = how.size < GRADIENT
    total = GRADIENT * (learned if accumulation > 1 else done if low else 0) / processes
    if not done:
        return total
    reduced = min(done, max(REDUCE_BUCKET, largest)) if done > REDUCE_BUCKET or done == learned else 0
    copies = reduced * (how.size + (GRADIENT if low else 0))
    if not how.gpu:
        return total + how.size * done + copies
    stay = 2 * REDUCE_BUCKET * how.size + (how.size * largest if largest > REDUCE_BUCKET else 0)
    return total + stay + copies + (0 if low else GRADIENT * learned / processes)


def cr_ctc_bytes(frames: float, labels: int, longest: float) -> float:
    """The most that the losses of both copies take on log-probabilities, all float32.

    Five times the log-probabilities: these, the probabilities that the KL terms pull towards, and three gradients, of either
    copy padded to the whole, and their sum.  And CTC's paths.

    Args:
        frames: padded, of both copies; longest: labels of an utterance.
    """
    return 4 * frames * (5 * labels + 2 * longest + 1)


def pronunciation_bytes(config: Config, batch: BatchShape) -> float:
    """What alignment's CTC keeps in float32: log-probabilities of all phonemes, and paths of as many as are spoken in 8 s."""
    speech = batch.rows * -(-subsampled_length(batch.frames) // config.adaptor.stride)
    return 4 * speech * (len(inventory()) + 2 * PHONEMES_PER_SECOND * MEAN_SECONDS + 1)


@dataclass(frozen=True)
class StageCost:
    """What one stage takes. peak: memory of one process where it is most, see :func:`memory`."""

    stage: str
    processes: int
    steps: int
    audio_hours: float
    peak: Moment
    flops: float

    def gpu_hours(self, peak_flops: float, mfu: float) -> float:
        return self.flops / (peak_flops * mfu) / 3600


def largest_batch(config: Config, stage: str, max_duration: float) -> BatchShape:
    """The most that `TrainingBatches` allows, for utterances of the mean length: `PADDED` times the audio and the positions."""
    copies, a_second = (2, PHONEMES_PER_SECOND) if stage == "pretrain" else (1, TEXT_TOKENS_PER_SECOND)
    utterances = max(1, round(PADDED * max_duration / MEAN_SECONDS))
    frames = round(100 * PADDED * max_duration / utterances)
    targets = round(a_second * PADDED * max_duration)
    speech = utterances * -(-subsampled_length(frames) // config.adaptor.stride)
    positions = 0 if stage == "pretrain" else speech + utterances * (PROMPT_TOKENS + 1) + targets
    return BatchShape(copies * utterances, frames, positions, targets)


def stage_costs(config: Config) -> list[StageCost]:
    """The training stages of arm `ours` (for ia_sft, all its iterations), each on the GPUs that `resources` give it.

    Memory is that of a GPU, also where `resources` give a stage none.
    """
    llm = llm_config(config)
    answers = TEXT_TOKENS_PER_SECOND * MEAN_SECONDS + 1
    tokens = FRAMES_PER_SECOND * MEAN_SECONDS / config.adaptor.stride + PROMPT_TOKENS + answers
    encoder = encoder_flops(config.encoder, config.features.num_mel_bins, int(100 * MEAN_SECONDS))
    decoder = llm_flops(llm, tokens, answers)
    # Of an utterance. Backward costs twice the forward where weights learn, once where gradients only pass through.
    flops = {
        "pretrain": 2 * 3 * encoder,
        "align": encoder + 2 * decoder,
        "ia_sft": encoder + 3 * decoder,
        "joint_sft": 3 * encoder + 3 * decoder,
    }
    costs = []
    for stage in STAGES:
        schedule, asked = getattr(config, stage), config.resources.of(stage)
        steps = schedule.steps * (config.cka.max_parts if stage == "ia_sft" else 1)
        processes = asked.nodes * max(1, asked.gpus_per_node)
        seconds = steps * schedule.accumulation * processes * schedule.max_duration
        peak = memory(config, stage, largest_batch(config, stage, schedule.max_duration), processes=processes)
        costs.append(StageCost(stage, processes, steps, seconds / 3600, peak, seconds / MEAN_SECONDS * flops[stage]))
    return costs
