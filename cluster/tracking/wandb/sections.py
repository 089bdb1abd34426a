"""Metric names in W&B: section in front of the full metrics.jsonl key. W&B groups panels by the part before
the first slash.

Pure: maps names, no values.
"""

SECTIONS = ("train", "rollout", "users", "time", "ledger", "eval", "sft")
"""In the order in which a dashboard shows them."""
PLACES = {
    "learner/idle/": "time",
    "engine/idle/": "time",
    "engine/paused/": "time",
    "rollout/time/": "time",
    "rollout/turn_s/": "time",
    "learner/": "train",
    "engine/": "rollout",
    "buffer/": "ledger",
    "checkpoint/": "ledger",
}
"""Name prefixes with a section other than their first word; the first match decides."""
STEP, SFT_STEP = "step", "sft/step"
"""The two axes: optimizer steps of GRPO, and of SFT."""


def section_of(key: str) -> str:
    """Where a number of metrics.jsonl is shown."""
    for beginning, section in PLACES.items():
        if key.startswith(beginning):
            return section
    room = key.partition("/")[0]
    return room if room in SECTIONS else "train"


def dashboard_key(key: str) -> str:
    """The name in W&B of a number of metrics.jsonl.

    Example: `learner/entropy` is `train/learner/entropy`, and `time/wait_s` is `time/wait_s`.
    """
    section = section_of(key)
    return key if key == STEP or key.startswith(f"{section}/") else f"{section}/{key}"


def axis_of(section: str) -> str:
    """What a section's numbers are drawn over."""
    return SFT_STEP if section == "sft" else STEP
