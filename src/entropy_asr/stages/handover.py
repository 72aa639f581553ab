"""What decides when pretraining hands its encoder over: linear CKA to the encoder that was handed over last."""

import copy
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor

from entropy_asr.analysis.cka import LinearCka
from entropy_asr.audio.batches import evaluation_batches
from entropy_asr.config import Cka, Features
from entropy_asr.corpora.manifest import spread
from entropy_asr.models.conformer import ConformerEncoder, length_mask
from entropy_asr.training import distributed


class CkaMonitor:
    """Ends a part when CKA to the reference falls below the threshold (method, section 3).

    The reference is taken at `warmup_steps`; the encoder of each trigger is the next reference.  With `max_parts` reached,
    it measures on but triggers no more: pretraining then goes to its last step.
    """

    def __init__(
        self, encoder: ConformerEncoder, config: Cka, cuts: CutSet, features: Features, device: torch.device, part: int
    ) -> None:
        self.encoder, self.config, self.device, self.part = encoder, config, device, part
        self.every = config.every
        self.batches = [(x, lens) for _, x, lens in evaluation_batches(spread(cuts, config.utterances), features, 60.0)]
        self.reference: ConformerEncoder | None = None
        self.trace: list[dict[str, float]] = []

    def after_step(self, step: int) -> bool:
        if step == self.config.warmup_steps:
            self._take_reference()
        if self.reference is None or step <= self.config.warmup_steps or step % self.config.every:
            return False
        value = self._cka()
        self.trace.append({"step": step, "cka": round(value, 6), "part": self.part})
        below = value < self.config.threshold and self.part < self.config.max_parts - 1
        if distributed.agree(below and distributed.rank() == 0):
            self._take_reference()
            return True
        return False

    def _take_reference(self) -> None:
        self.reference = copy.deepcopy(self.encoder).eval().requires_grad_(False)

    @torch.inference_mode()
    def _cka(self) -> float:
        was_training = self.encoder.training
        self.encoder.eval()
        cka = LinearCka()
        for features, lens in self.batches:
            features = features.to(self.device)
            now, out_lens = self.encoder(features, lens)
            then, _ = self.reference(features, lens)
            real = length_mask(out_lens, now.size(1), now.device)
            cka.update(now[real], then[real])
        self.encoder.train(was_training)
        return cka.value()

    def counters(self) -> dict[str, Any]:
        return {"trace": self.trace}

    def tensors(self) -> dict[str, Tensor]:
        return {f"reference.{name}": tensor for name, tensor in self.reference.state_dict().items()} if self.reference else {}

    def restore(self, counters: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.trace = counters["trace"]
        if tensors:
            self._take_reference()
            self.reference.load_state_dict({name.removeprefix("reference."): tensor for name, tensor in tensors.items()})
