"""Catalogue of all metrics of a run: key in metrics.jsonl, section, unit, description, and Prometheus name.
Documentation, dashboards and trackers are made from this list.

Imports nothing of the project. `tests/cluster/tracking/test_metric_catalogue.py` checks this list against the
code.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

MetricSection = Literal["train", "rollout", "users", "time", "ledger", "eval"]
SECTIONS: tuple[MetricSection, ...] = get_args(MetricSection)
MetricKind = Literal["gauge", "counter", "histogram"]
"""gauge: a state, a mean, or a count of all so far. counter: an amount of one step, which the endpoint adds
up. histogram: single values, which the endpoint counts by size."""
PREFIX = "ray_userrl_"
"""Begins every name at the endpoint; Ray adds its own part, and `_total` to counters."""
WORDS = {"tokens_per_s": "tokens_per_second", "num_bytes": "bytes"}
"""Parts of a key that Prometheus spells otherwise."""
ENDINGS = {"s": "seconds", "share": "ratio"}
"""By unit: what a name ends with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One number, or one for each gym, simulator or reason."""

    key: str
    """`room/thing/stat`; a part in braces stands for any one name, and is a label at the endpoint."""
    section: MetricSection
    unit: str
    """Empty for a plain number."""
    meaning: str
    kind: MetricKind = "gauge"

    @property
    def labels(self) -> tuple[str, ...]:
        """The parts in braces, in order. Each has few values: gyms, simulators, reasons."""
        return tuple(re.findall(r"{(\w+)}", self.key))

    @property
    def name(self) -> str:
        """What it is called where it is made: `userrl_` and, as Prometheus wants it, the unit at the end."""
        words = [WORDS.get(word, word) for word in self.key.split("/") if not word.startswith("{")]
        ending = ENDINGS.get(self.unit)
        if ending:
            pattern = {"seconds": r"_s$", "ratio": r"_?(share|fraction)$"}[ending]
            words = [*(kept for word in words if (kept := re.sub(pattern, "", word))), ending]
        return "_".join(["userrl", *words])

    @property
    def series(self) -> str:
        """Its name at the endpoint. Example: `time/wait_s` is `ray_userrl_time_wait_seconds`."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"

    def labels_of(self, key: str) -> dict[str, str] | None:
        """The labels of a key that this describes; None where it describes another."""
        found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", self.key), key)
        return found.groupdict() if found else None


def _section(section: MetricSection, rows: Mapping[str, tuple[str, str]]) -> tuple[Metric, ...]:
    return tuple(
        Metric(
            key=key,
            section=section,
            unit=unit,
            meaning=meaning,
            kind="counter" if key in AMOUNTS else "gauge",
        )
        for key, (unit, meaning) in rows.items()
    )


AMOUNTS = frozenset(
    {
        *("learner/num_tokens", "learner/num_loss_tokens", "learner/num_skipped", "learner/num_masked"),
        *("learner/num_left_out", "learner/num_dropped/{reason}", "learner/logprob_gap/num_tokens"),
        *("learner/information_gain/num_turns", "learner/information_gain/num_too_long"),
        *("rollout/policy_tokens", "rollout/user_retries", "users/{simulator}/failed/{reason}"),
    }
)
"""Keys with an amount of one step."""

TRAIN = _section(
    "train",
    {
        "learner/loss": ("", "The step's loss, with what the recipe adds to it: KL, entropy bonus"),
        "learner/entropy": ("nats", "Entropy of the policy, mean over the tokens in the loss"),
        "learner/entropy_coefficient": ("", "The entropy bonus in force, where a target is set"),
        "learner/grad_norm": ("", "Norm of the gradient before it is clipped"),
        "learner/lr": ("", "Learning rate"),
        "learner/num_tokens": ("tokens", "Tokens that the learners computed, prompts among them"),
        "learner/num_loss_tokens": ("tokens", "Tokens in the loss: what the policy said"),
        "learner/num_skipped": (
            "steps",
            "Steps not taken: nothing to learn from, or not finite",
        ),
        "learner/tokens_per_s": ("tokens/s", "`learner/num_tokens` by the seconds of computing"),
        "learner/clip_fraction": ("share", "Tokens in the loss whose gradient a bound changed"),
        "learner/ratio": ("", "Probability under the policy by that when it was sampled, mean over tokens"),
        "learner/kl": ("nats", "KL of what sampled to the policy (k3), mean over tokens"),
        "learner/reference_kl": ("nats", "KL of the policy to the reference (k3), mean over tokens"),
        "learner/logprob_gap/mean": (
            "nats",
            "Mean distance of engine's and learner's logprobs, same version",
        ),
        "learner/logprob_gap/num_tokens": ("tokens", "Tokens that the gap is measured on"),
        "learner/importance/weight": ("", "Importance weight, mean over tokens"),
        "learner/importance/left_out_fraction": ("share", "Tokens that the importance weights leave out"),
        "learner/critic/loss": ("", "The critic's own loss"),
        "learner/critic/explained_variance": ("", "1 for a critic that knows the returns, 0 for their mean"),
        "learner/information_gain/mean": ("", "Information gain of a turn, mean over all gyms"),
        "learner/information_gain/{gym}": ("", "Information gain of a turn of this gym"),
        "learner/information_gain/num_turns": ("turns", "Turns that have a finite gain"),
        "learner/information_gain/num_too_long": ("turns", "Turns without a gain, too long to be scored"),
        "learner/num_dropped/{reason}": ("trajectories", "Taken by the step, and left out by the learners"),
        "learner/num_masked": ("trajectories", "Left out since they were cut off by turns or tokens"),
        "learner/num_left_out": ("samples", "Beyond the step's token budget"),
        "learner/budget_filled": ("share", "Part of the token budget that the step had"),
        "learner/weights/num_bytes": ("bytes", "Size of the weights that go to the engines"),
        "learner/rebuilds": ("", "Times that the learners were replaced, so far"),
    },
)
ROLLOUT = _section(
    "rollout",
    {
        "rollout/reward/mean": ("reward", "Score of a trajectory that did not fail, mean over all gyms"),
        "rollout/reward/{gym}": ("reward", "The same, of this gym"),
        "rollout/turns/mean": ("turns", "Turns of a trajectory that did not fail"),
        "rollout/policy_tokens": (
            "tokens",
            "What the policy said in the groups settled since the last step",
        ),
        "rollout/tokens_per_s": ("tokens/s", "`rollout/policy_tokens` by the step's seconds"),
        "rollout/group_duration_s/max": ("s", "The slowest group, from its order to its rewards"),
        "rollout/user_retries": ("calls", "Calls to simulated users that had to be made again"),
        "rollout/num_actors": ("processes", "Rollout actors, including those being restarted"),
        "engine/num_serving": ("processes", "Engines that serve"),
        "engine/num_lost": ("processes", "Engines that died or hung, so far"),
        "engine/requests/mean": ("requests", "In flight at an engine, mean over time and engines"),
    },
)
USERS = _section(
    "users",
    {
        "users/{simulator}/goal_leaks": ("share", "Replies that reveal a hidden value without being asked"),
        "users/{simulator}/front_loading": ("share", "Facts that stand in a dialogue's first reply"),
        "users/{simulator}/agreeableness": ("share", "Yes-or-no questions and proposals answered with yes"),
        "users/{simulator}/repetition": ("share", "Replies that another question got before"),
        "users/{simulator}/contradictions": ("share", "Repeated facts that contradict the earlier statement"),
        "users/{simulator}/early_stop": ("share", "Dialogues that the user ended without reason"),
        "users/{simulator}/{gauge}/num_cases": ("", "Cases that the gauge is a share of"),
        "users/{simulator}/failed/{reason}": ("trajectories", "Ended by a failure of this user"),
        "users/{simulator}/concurrency/mean": ("calls", "Given by one rollout actor at a time"),
    },
)
TIME = _section(
    "time",
    {
        "time/step_s": ("s", "A step of the driver: the five stages below together"),
        "time/wait_s": ("s", "Until enough groups were ready"),
        "time/update_s": ("s", "The learners' update, as the driver waits for it"),
        "time/sync_s": ("s", "Waited for weights to be live in the engines"),
        "time/weights_s": ("s", "The learners were needed for weights"),
        "time/report_s": ("s", "Booking, beginning checkpoints, collecting numbers"),
        "time/learn_s": ("s", "The first learner's computing"),
        "time/pack_weights_s": ("s", "Packing the weights"),
        "time/send_weights_s": ("s", "Sending the weights from GPU to GPU"),
        "time/engine_write_s": ("s", "Writing the weights where vLLM reads them, on the slowest engine"),
        "time/engine_paused_s": ("s", "The slowest engine stood still to load the weights"),
        "learner/idle/share": ("share", "Of the step: the learners neither computed nor sent weights"),
        "engine/idle/share": ("share", "Of the time since the last report: no request at an engine"),
        "engine/paused/share": ("share", "Of the same time: an engine stood still to load weights"),
        "rollout/time/{stage}/share": ("share", "Of all turns' seconds: policy, queue, user, tool or reward"),
        "rollout/turn_s/{gym}": ("s", "A mean turn of this gym"),
    },
)
LEDGER = _section(
    "ledger",
    {
        "ledger/issued": ("trajectories", "Ordered since the run began: trained + dropped + in flight"),
        "ledger/trained": ("trajectories", "Trained since the run began"),
        "ledger/dropped/{reason}": ("trajectories", "Dropped since the run began, for this reason"),
        "ledger/in_flight": ("trajectories", "Ordered, and neither trained nor dropped yet"),
        "buffer/age/mean": ("versions", "Age of a group that the step trained: that of its oldest token"),
        "buffer/age/max": ("versions", "The oldest of them"),
        "buffer/span/mean": ("versions", "Policy versions that one trajectory ran over, newest minus oldest"),
        "buffer/span/max": ("versions", "The most of them"),
        "buffer/groups_ready": ("groups", "Finished and fresh, waiting for a step"),
        "buffer/slots_taken": ("groups", "Ordered, and their weights not live yet"),
        "buffer/puts_ignored": ("groups", "Groups delivered twice or too late since the buffer started"),
        "buffer/reissued": (
            "groups",
            "Taken from their holders, given to others, since the buffer started",
        ),
        "buffer/archive_failures": ("files", "Could not be written, since the buffer started"),
        "buffer/journal_failures": ("", "Writes that had to be tried again, since the buffer started"),
        "checkpoint/failures": ("checkpoints", "Could not be written or copied, since the driver started"),
    },
)
CATALOGUE: tuple[Metric, ...] = (*TRAIN, *ROLLOUT, *USERS, *TIME, *LEDGER)
"""Keys that a line of metrics.jsonl may hold besides `step`."""

STEP = Metric(key="step", section="train", unit="", meaning="Optimizer steps of GRPO behind the policy")
STEP_AT = Metric(
    key="time/last_step_at_s", section="time", unit="s", meaning="When the last step ended, since 1970"
)
STEPS = Metric(
    key="steps",
    section="train",
    unit="steps",
    meaning="Taken by this driver, repeated ones too",
    kind="counter",
)
DURATION = Metric(
    key="rollout/group_duration_s",
    section="rollout",
    unit="s",
    meaning="Groups by how long they took, order to rewards",
    kind="histogram",
)
SCORES: dict[str, Metric] = {
    split: Metric(key=f"{place}/{{gym}}/score", section="eval", unit="reward", meaning=meaning)
    for split, place, meaning in (
        ("test", "evaluation", "Mean score on held-out tasks of this gym, at the last evaluation"),
        ("validation", "validation", "Mean score on validation tasks of this gym, when last looked at"),
    )
}
"""By the tasks' split."""
ENDPOINT: tuple[Metric, ...] = (STEP, STEP_AT, STEPS, DURATION, *SCORES.values())
"""What only the endpoint has, since a line of metrics.jsonl is a step."""
EXPORTED: tuple[Metric, ...] = (*CATALOGUE, *ENDPOINT)


@lru_cache(maxsize=1024)
def find(key: str) -> tuple[Metric, Mapping[str, str]] | None:
    """What a key of metrics.jsonl means, and its labels; a key without labels goes before one with. None for
    an unknown one.

    Example: `find("rollout/reward/tau")` is the metric `rollout/reward/{gym}` and `{"gym": "tau"}`.
    """
    for metric in sorted(CATALOGUE, key=lambda one: len(one.labels)):
        labels = metric.labels_of(key)
        if labels is not None:
            return metric, labels
    return None
