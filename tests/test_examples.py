"""The example that people read first runs, is short, and learns without Ray."""

from pathlib import Path

from examples import one_process_grpo

MAX_LINES = 150


def test_two_steps_of_the_one_process_example_run():
    rewards = list(one_process_grpo.train(num_steps=2, num_demonstrations=64))
    assert len(rewards) == 2 and all(0.0 <= reward <= 1.0 for reward in rewards)


def test_the_one_process_example_is_short_and_imports_no_ray():
    text = Path(one_process_grpo.__file__).read_text()
    assert text.count("\n") <= MAX_LINES
    assert "import ray" not in text and "from ray" not in text
