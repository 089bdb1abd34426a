"""The example of GRPO in one process runs, trains, and is as short as it promises."""

from pathlib import Path

import pytest

from examples import one_process_grpo


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_grpo_in_one_process_learns_tool_calls_and_steps_on_its_own_dialogues() -> None:
    before, after = one_process_grpo.train(num_steps=2, num_demonstrations=800)
    assert 0.0 < before <= 1.0 and 0.0 <= after <= 1.0


def test_the_example_has_at_most_150_lines_and_needs_no_ray() -> None:
    text = Path(one_process_grpo.__file__).read_text()
    assert text.count("\n") <= 150
    assert "import ray" not in text and "from cluster" not in text
