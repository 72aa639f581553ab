"""What CKA is measured on."""

from collections import Counter

import pytest
import torch
from lhotse import CutSet, MonoCut, SupervisionSegment

from entropy_asr.config import Cka, Features
from entropy_asr.stages import handover


@pytest.mark.parametrize("sizes", [{"en": 195, "zh": 195}, {"en": 1000, "zh": 100}, {"zh": 100, "en": 1000}])
def test_cka_is_measured_on_as_many_utterances_of_each_language(monkeypatch: pytest.MonkeyPatch, sizes: dict) -> None:
    cuts = [
        MonoCut(f"{language}-{i:04d}", 0, 1, 0, supervisions=[SupervisionSegment("", "", 0, 1, language=language)])
        for language, size in sizes.items()
        for i in range(size)
    ]
    measured: list[MonoCut] = []
    monkeypatch.setattr(handover, "evaluation_batches", lambda chosen, *_: measured.extend(chosen) or [])
    handover.CkaMonitor(torch.nn.Identity(), Cka(utterances=200), CutSet.from_cuts(cuts), Features(), torch.device("cpu"), 0)
    assert Counter(cut.supervisions[0].language for cut in measured) == {"en": 100, "zh": 100}
