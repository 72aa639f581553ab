"""The example of docs/metrics.md runs, and its analytic number is right."""

import math
import re

from repository import REPO
from scipy.integrate import quad

PAGE = (REPO / "docs/metrics.md").read_text(encoding="utf-8")


def test_the_worked_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/metrics.md", "exec"), {})


def test_its_number_is_the_integral() -> None:
    lost, _ = quad(lambda x: math.exp(-((x - 1) ** 2) / 2) / math.sqrt(2 * math.pi) * math.log1p(math.exp(-2 * x)), -12, 14)
    assert f"{math.log(2) - lost:.4f}" in PAGE and f"{1 - lost / math.log(2):.3f}" in PAGE
