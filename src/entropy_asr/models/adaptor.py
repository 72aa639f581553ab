"""The adaptor: consecutive encoder frames become one LLM position (four, 25 Hz to 6.25 Hz), through a two-layer MLP."""

from torch import Tensor, nn
from torch.nn import functional as F

from entropy_asr.config import Adaptor as AdaptorConfig


class Adaptor(nn.Module):
    """Frame stacking and MLP into the LLM's embedding space."""

    def __init__(self, config: AdaptorConfig, encoder_width: int, llm_width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.stack * encoder_width)
        self.layers = nn.Sequential(
            nn.Linear(config.stack * encoder_width, config.hidden), nn.GELU(), nn.Linear(config.hidden, llm_width)
        )

    def forward(self, encoder_out: Tensor, encoder_out_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Stack and project.

        Where `stack` is more than `stride`, stacks overlap, and each has its own `stride` frames in its middle.  Stacks at the
        ends of an utterance are partly padding; the encoder gives zeros there, whatever the batch.

        Args:
            encoder_out: (N, T, encoder_width), zero on padding.
            encoder_out_lens: (N,).

        Returns:
            (N, ceil(T / stride), llm_width) and (N,) ceil(lens / stride).
        """
        stack, stride = self.config.stack, self.config.stride
        before = (stack - stride) // 2
        x = F.pad(encoder_out, (0, 0, before, -encoder_out.size(1) % stride + stack - stride - before))
        x = x.unfold(1, stack, stride).transpose(2, 3).flatten(2)  # (N, ceil(T / stride), stack * encoder_width)
        return self.layers(self.norm(x)), self.output_length(encoder_out_lens)

    def output_length(self, length):
        """LLM positions of so many encoder frames; for an int or an integer tensor."""
        return (length + self.config.stride - 1) // self.config.stride
