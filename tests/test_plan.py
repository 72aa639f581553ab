"""The plan's arithmetic against what torch counts and autograd keeps."""

from collections.abc import Callable

import pytest
import torch
from repository import REPO
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from entropy_asr import plan
from entropy_asr.config import Config, Encoder, Llm, ScratchLM
from entropy_asr.config_files import load_config
from entropy_asr.errors import InputError
from entropy_asr.models.conformer import ConformerEncoder, subsampled_length
from entropy_asr.models.speech_llm import checkpoint_layers
from entropy_asr.training.engine import freeze

ENCODER = Encoder(width=96, layers=3, heads=4, feed_forward=256, conv_kernel=7, subsampling_channels=8, dropout=0.0)
SCRATCH = {"vocab_size": 700, "hidden_size": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 160}
SMALL = Config(encoder=ENCODER, llm={"pretrained": None, "scratch": SCRATCH}, engine={"precision": "fp32"})


def kept_bytes(forward: Callable[[], object], leave_out: torch.nn.Module) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass, parameters and what `leave_out` owns aside."""
    known = {p.untyped_storage().data_ptr() for p in leave_out.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(size for size, _ in kept.values())


def test_activations_are_near_what_autograd_keeps() -> None:
    frames = subsampled_length(807)
    encoder = ConformerEncoder(ENCODER)
    layout = encoder.frames([frames], torch.device("cpu"), torch.float32)
    x = torch.randn(frames, ENCODER.width, requires_grad=True)
    kept = kept_bytes(lambda: encoder.layers[1](encoder.layers[0](x, layout), layout), encoder)
    two = ENCODER.model_copy(update={"layers": 2})
    assert plan.encoder_activation_bytes(two, frames, 4, checkpointing=False) == pytest.approx(kept, rel=0.2)

    llm = plan.llm_config(SMALL)
    model = AutoModelForCausalLM.from_config(llm).train()
    embeddings = torch.randn(1, 400, 64, requires_grad=True)
    kept = kept_bytes(lambda: model.get_decoder()(inputs_embeds=embeddings, use_cache=False), model)
    assert plan.llm_activation_bytes(llm, 400, 4, checkpointing=False) == pytest.approx(kept, rel=0.2)


class LiveBytes(TorchDispatchMode):
    """What the tensors hold that operations inside of it make: now, and the most at any time."""

    def __init__(self, leave_out: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {p.untyped_storage()._cdata for p in leave_out.parameters()}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self.weights:
                    continue
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, self.now())
        return result

    def now(self) -> int:
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        return sum(size for _, size in self.alive.values())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_checkpointed_llm_keeps_what_the_plan_counts_be_it_frozen(frozen: bool) -> None:
    """In alignment it is frozen, and gradients go through it to the adaptor."""
    layers, tokens = 16, 400
    scratch = ScratchLM(**SCRATCH | {"layers": layers})
    llm = plan.llm_config(SMALL.model_copy(update={"llm": Llm(pretrained=None, scratch=scratch)}))
    model = AutoModelForCausalLM.from_config(llm).train()
    if frozen:
        freeze(model)
    checkpoint_layers(model)
    embeddings = torch.randn(1, tokens, llm.hidden_size, requires_grad=True)
    with LiveBytes(model) as live:
        hidden = model.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        kept = live.now()
        hidden.sum().backward()
    inputs = layers * tokens * llm.hidden_size * 4
    assert kept == pytest.approx(inputs, rel=0.2)
    if frozen:  # else the weights' gradients are in it, too
        assert live.most == pytest.approx(plan.llm_activation_bytes(llm, tokens, 4, checkpointing=True), rel=0.25)
    assert embeddings.grad is not None
    assert all(module.training is not frozen for module in model.modules())


def test_paper_is_the_papers_size_and_fits_a_gpu() -> None:
    paper = load_config(REPO / "config/paper.yaml")
    sizes = plan.parameters(paper)
    assert sum(sizes.values()) == pytest.approx(2.3e9, rel=0.03)
    assert sizes["encoder"] == pytest.approx(600e6, rel=0.03)
    stages = {stage.stage: stage for stage in plan.stage_costs(paper)}
    assert all(0 < stage.memory < 80e9 for stage in stages.values())
    assert stages["align"].optimiser < stages["ia_sft"].optimiser < stages["joint_sft"].optimiser
    assert stages["pretrain"].gpu_hours(312e12, 0.4) == pytest.approx(2 * stages["pretrain"].gpu_hours(312e12, 0.8))


def test_an_unknown_pretrained_llm_is_an_error() -> None:
    with pytest.raises(InputError, match="is no local folder"):
        plan.parameters(Config(llm={"pretrained": "nobody/nothing"}))
