"""Every arm takes the same number of LLM-side steps, however many parts CKA cuts pretraining into."""

import pytest

from entropy_asr.config import Config
from entropy_asr.plan import stage_costs
from entropy_asr.stages.ia_sft import iteration_steps


@pytest.mark.parametrize("max_parts", [1, 2, 5])
def test_iterations_take_the_same_steps_together_for_any_number_of_parts(max_parts: int) -> None:
    for parts in range(1, max_parts + 1):
        assert sum(iteration_steps(7, max_parts, i, last=i == parts - 1) for i in range(parts)) == 7 * max_parts


def test_the_papers_three_encoders_get_one_one_and_two_million_steps() -> None:
    paper = Config()
    steps = [iteration_steps(paper.ia_sft.steps, paper.cka.max_parts, i, last=i == 2) for i in range(3)]
    assert steps == [1_000_000, 1_000_000, 2_000_000]
    assert next(stage.steps for stage in stage_costs(paper) if stage.stage == "ia_sft") == sum(steps)
