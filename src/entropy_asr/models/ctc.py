"""CR-CTC: consistency-regularised CTC on phonemes (Yao et al., 2024, arXiv 2410.05101).

Two differently masked copies of each utterance go through one encoder.  The loss is the mean of their CTC losses plus alpha
times the symmetric KL divergence between their frame posteriors, each side pulled towards the other's detached posterior.
Everything is summed over real frames and divided by the number of real frames of one copy.

`embedding_ctc` is alignment's: CTC without a head, on embeddings that exist.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropy_asr.models.conformer import length_mask
from entropy_asr.models.packing import to_device

BLANK_ID = 0
EMBEDDING_SCALE = 5.0


class CtcHead(nn.Module):
    """Encoder frames to phoneme log-probabilities, through `layers` linear layers."""

    def __init__(self, width: int, vocab_size: int, layers: int) -> None:
        super().__init__()
        hidden = [module for _ in range(layers - 1) for module in (nn.Linear(width, width), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, vocab_size))

    def forward(self, encoder_out: Tensor) -> Tensor:
        """(N, T, width) to (N, T, vocab_size) log-probabilities, float32."""
        return F.log_softmax(self.layers(encoder_out).float(), dim=-1)


def ctc_loss(log_probs: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor) -> Tensor:
    """CTC loss of each utterance, (N,). log_probs: (N, T, V); targets: (N, S) padded with anything; lengths on the CPU."""
    return F.ctc_loss(
        log_probs.transpose(0, 1), targets, lens, target_lens, blank=BLANK_ID, reduction="none", zero_infinity=False
    )


def symmetric_kl(first: Tensor, second: Tensor, lens: Tensor) -> Tensor:
    """Half of KL(sg[second] || first) + KL(sg[first] || second), summed over real frames.

    Args:
        first, second: (N, T, V) log-probabilities of the two copies.
        lens: (N,) real frames.
    """
    real = length_mask(lens, first.size(1), first.device)[:, :, None]
    forward = F.kl_div(first, second.detach(), log_target=True, reduction="none")
    backward = F.kl_div(second, first.detach(), log_target=True, reduction="none")
    return 0.5 * (forward + backward).masked_fill(~real, 0.0).sum()


def cr_ctc_loss(
    log_probs: Tensor, lens: Tensor, targets: Tensor, target_lens: Tensor, alpha: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """CR-CTC loss a frame of a batch whose second half holds the second copies, in the same order.

    Args:
        log_probs: (2N, T, V); lens: (2N,), on the CPU; targets: (N, S); target_lens: (N,), on the CPU.

    Returns:
        loss in nats a frame, and its parts `ctc` and `consistency`.
    """
    first, second = log_probs.chunk(2)
    lens = lens[: first.size(0)]
    frames = int(lens.sum())
    ctc = 0.5 * (ctc_loss(first, lens, targets, target_lens) + ctc_loss(second, lens, targets, target_lens)).sum() / frames
    consistency = symmetric_kl(first, second, lens) / frames
    return ctc + alpha * consistency, {"ctc": ctc.detach(), "consistency": consistency.detach()}


def embedding_ctc(vectors: Tensor, lens: Tensor, units: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """CTC of vectors that shall be unit embeddings themselves: a unit's logit is its product with the vector.

    So each vector is drawn to the embedding of one unit or of the blank.  Utterances with more units than vectors count nothing.

    Args:
        vectors: (N, L, D), anything on padding; lens: (N,), on the CPU.
        units: (U, D), lengths about 1; not learned.  The first is the blank.
        targets: rows of `units` that each utterance has in turn.

    Returns:
        nats a unit, over the whole batch.
    """
    log_probs = F.log_softmax((EMBEDDING_SCALE * vectors @ units.detach().to(vectors.dtype).T).float(), dim=-1)  # (N, L, U)
    target_lens = torch.tensor([len(target) for target in targets])
    flat = to_device([unit for target in targets for unit in target], vectors.device)
    loss = F.ctc_loss(log_probs.transpose(0, 1), flat, lens, target_lens, BLANK_ID, reduction="sum", zero_infinity=True)
    return loss / max(1, len(flat))


@torch.no_grad()
def ctc_greedy(log_probs: Tensor, lens: Tensor) -> list[list[int]]:
    """Best path, repeats merged, blanks dropped."""
    decoded = []
    for path, length in zip(log_probs.argmax(-1), lens.tolist(), strict=True):
        path = torch.unique_consecutive(path[:length])
        decoded.append(path[path != BLANK_ID].tolist())
    return decoded


@torch.no_grad()
def ctc_prefix_beam(log_probs: Tensor, lens: Tensor, beams: int) -> list[list[int]]:
    """Prefix beam search (Hannun et al., 2014, arXiv 1408.2873; no language model): the likeliest labels, not the best path.

    A label sequence has as many paths as ways to fill the frames, and greedy takes the best one's; here the paths of a
    sequence count together.  Each frame extends `beams` sequences by its `beams` likeliest labels.

    Args:
        log_probs: (N, T, V); lens: (N,).
    """
    decoded = []
    for rows, length in zip(log_probs.double().cpu(), lens.tolist(), strict=True):
        rows = rows[:length]
        likeliest = rows.topk(min(beams + 1, rows.size(1)), dim=1).indices.tolist()  # the blank may be one of them
        heard: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # of the paths that end in blank, and not
        for frame, labels in zip(rows.tolist(), likeliest, strict=True):
            longer: dict[tuple[int, ...], tuple[float, float]] = {}
            for prefix, (blank, label) in heard.items():
                either = np.logaddexp(blank, label)
                old = longer.get(prefix, (-math.inf, -math.inf))
                again = label + frame[prefix[-1]] if prefix else -math.inf
                longer[prefix] = np.logaddexp(old[0], either + frame[BLANK_ID]), np.logaddexp(old[1], again)
                for new in labels:
                    if new != BLANK_ID:
                        before = blank if prefix and prefix[-1] == new else either
                        old = longer.get((*prefix, new), (-math.inf, -math.inf))
                        longer[*prefix, new] = old[0], np.logaddexp(old[1], before + frame[new])
            heard = dict(sorted(longer.items(), key=lambda item: np.logaddexp(*item[1]), reverse=True)[:beams])
        decoded.append(list(max(heard, key=lambda prefix: np.logaddexp(*heard[prefix]))))
    return decoded
