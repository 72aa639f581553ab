"""What an experiment will cost, from its config alone: parameters, memory a GPU, steps, GPU-hours.

    entropy-asr plan config/paper.yaml --mfu 0.4

Nothing is trained or downloaded; the modules are built without storage.  Parameters, bytes of ZeRO-2 and FLOPs of the matrix
products follow from the architecture.  Activations are an estimate of what autograd keeps.  `tests/test_plan.py` compares the
FLOPs with torch's counter and the activations with what autograd really keeps.
"""

from dataclasses import dataclass

from entropy_asr.config import PADDED, Config, Schedule
from entropy_asr.config import Encoder as EncoderConfig
from entropy_asr.errors import InputError
from entropy_asr.models.flops import encoder_flops, llm_flops

FRAMES_PER_SECOND = 25.0
MEAN_SECONDS = 8.0  # [O] of an utterance
TEXT_TOKENS_PER_SECOND = 4.0  # [O] about three words, or four to five hanzi, a second
PROMPT_TOKENS = 20
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
    from entropy_asr.text.phonemes import inventory

    llm = llm_config(config)
    with torch.device("meta"):
        modules = {
            "encoder": ConformerEncoder(config.encoder, config.features.num_mel_bins),
            "phoneme head": CtcHead(config.encoder.width, len(inventory()), config.ctc.head_layers),
            "adaptor": Adaptor(config.adaptor, config.encoder.width, llm.hidden_size),
            "llm": AutoModelForCausalLM.from_config(llm),
        }
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}


def encoder_activation_bytes(config: EncoderConfig, frames: float, size: int, checkpointing: bool) -> float:
    """What autograd keeps of the Conformer blocks for so many output frames; with checkpointing one input a block, and one block.

    A block keeps about 22 vectors of its width and 4 of its feed-forward width a frame (layer norms, attention's inputs and
    outputs, the gated convolution; both feed-forwards before and after the activation).
    """
    block = frames * size * (22 * config.width + 4 * config.feed_forward)
    return config.layers * frames * size * config.width + block if checkpointing else config.layers * block


def llm_activation_bytes(llm, tokens: float, size: int, checkpointing: bool) -> float:
    """The same for the LLM's layers: norms, rotated and unrotated queries and keys, the gated feed-forward."""
    q, kv = llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim
    layer = tokens * size * (8 * llm.hidden_size + 5 * q + 5 * kv + 4 * llm.intermediate_size)
    kept = tokens * size * llm.hidden_size
    return llm.num_hidden_layers * kept + layer if checkpointing else llm.num_hidden_layers * layer


@dataclass(frozen=True)
class StageCost:
    """What one stage takes; memory is of one GPU."""

    stage: str
    processes: int
    steps: int
    audio_hours: float
    weights: float
    gradients: float
    optimiser: float
    activations: float
    flops: float

    @property
    def memory(self) -> float:
        """Bytes, without the allocator's fragmentation and the buffers of communication."""
        return self.weights + self.gradients + self.optimiser + self.activations

    def gpu_hours(self, peak_flops: float, mfu: float) -> float:
        return self.flops / (peak_flops * mfu) / 3600


def stage_costs(config: Config) -> list[StageCost]:
    """The training stages of arm `ours` (for ia_sft, all its iterations), each on the GPUs that `resources` give it."""
    sizes, llm = parameters(config), llm_config(config)
    size = 2 if config.engine.precision == "bf16" else 4
    checkpointing = config.engine.activation_checkpointing
    mel_frames = int(100 * MEAN_SECONDS)
    answers = TEXT_TOKENS_PER_SECOND * MEAN_SECONDS + 1
    tokens = FRAMES_PER_SECOND * MEAN_SECONDS / config.adaptor.stride + PROMPT_TOKENS + answers
    encoder = encoder_flops(config.encoder, config.features.num_mel_bins, mel_frames)
    decoder = llm_flops(llm, tokens, answers)

    def cost(stage: str, schedule: Schedule, modules: list[str], trained: list[str], copies: int, flops: float) -> StageCost:
        steps = schedule.steps * (config.cka.max_parts if stage == "ia_sft" else 1)
        asked = config.resources.of(stage)
        processes = asked.nodes * max(1, asked.gpus_per_node)
        seconds = steps * schedule.accumulation * processes * schedule.max_duration
        learned = sum(sizes[name] for name in trained)
        frames = copies * FRAMES_PER_SECOND * PADDED * schedule.max_duration  # of the largest batch
        activations = 0.0
        if "encoder" in trained:
            activations += encoder_activation_bytes(config.encoder, frames, size, checkpointing)
        if "llm" in modules:
            rows = PADDED * schedule.max_duration / MEAN_SECONDS
            activations += llm_activation_bytes(llm, rows * tokens, size, checkpointing)
            activations += rows * answers * llm.vocab_size * (size + 4 + 4)  # logits, in float32, their gradient
        return StageCost(
            stage,
            processes,
            steps,
            seconds / 3600,
            weights=size * sum(sizes[name] for name in modules),
            gradients=GRADIENT * learned / processes,
            optimiser=MASTER_AND_MOMENTS * learned / processes,
            activations=activations,
            flops=seconds / MEAN_SECONDS * flops,
        )

    system = ["encoder", "adaptor", "llm"]
    # Backward costs twice the forward where weights learn, once where gradients only pass through.
    return [
        cost("pretrain", config.pretrain, ["encoder", "phoneme head"], ["encoder", "phoneme head"], 2, 2 * 3 * encoder),
        cost("align", config.align, system, ["adaptor"], 1, encoder + 2 * decoder),
        cost("ia_sft", config.ia_sft, system, ["adaptor", "llm"], 1, encoder + 3 * decoder),
        cost("joint_sft", config.joint_sft, system, system, 1, 3 * encoder + 3 * decoder),
    ]
