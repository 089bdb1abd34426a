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
"""gauge: a state, a mean, or a running total. counter: an amount of one step, which the endpoint sums up.
histogram: single values, which the endpoint counts by size."""
PREFIX = "ray_userrl_"
"""Prefix of every name at the endpoint. Ray adds `ray_`, and `_total` to counters."""
WORDS = {"tokens_per_s": "tokens_per_second", "num_bytes": "bytes"}
"""Parts of a key with another spelling in Prometheus."""
ENDINGS = {"s": "seconds", "share": "ratio"}
"""Suffix of a name, by unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, or one per gym, simulator or reason."""

    key: str
    """`room/thing/stat`; a part in braces stands for any name, and is a label at the endpoint."""
    section: MetricSection
    unit: str
    """Empty for a dimensionless number."""
    meaning: str
    kind: MetricKind = "gauge"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the parts in braces, in order. Each has few values: gyms, simulators, reasons."""
        return tuple(re.findall(r"{(\w+)}", self.key))

    @property
    def name(self) -> str:
        """Name in `ray.util.metrics`: `userrl_...` and, by the rules of Prometheus, the unit at the end."""
        words = [WORDS.get(word, word) for word in self.key.split("/") if not word.startswith("{")]
        ending = ENDINGS.get(self.unit)
        if ending:
            pattern = {"seconds": r"_s$", "ratio": r"_?(share|fraction)$"}[ending]
            words = [*(kept for word in words if (kept := re.sub(pattern, "", word))), ending]
        return "_".join(["userrl", *words])

    @property
    def series(self) -> str:
        """Name at the endpoint. Example: `time/wait_s` is `ray_userrl_time_wait_seconds`."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"

    def labels_of(self, key: str) -> dict[str, str] | None:
        """Label values of a key of this metric; None if it is a key of another metric."""
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
"""Keys whose value is the amount of one step."""

TRAIN = _section(
    "train",
    {
        "learner/loss": ("", "Loss of the step, including KL and entropy terms of the recipe"),
        "learner/entropy": ("nats", "Entropy of the policy, mean over the tokens in the loss"),
        "learner/entropy_coefficient": ("", "Current coefficient of the entropy bonus, if a target is set"),
        "learner/grad_norm": ("", "Gradient norm before clipping"),
        "learner/lr": ("", "Learning rate"),
        "learner/num_tokens": ("tokens", "Tokens that the learners computed, including prompts"),
        "learner/num_loss_tokens": ("tokens", "Tokens in the loss: those that the policy sampled"),
        "learner/num_skipped": (
            "steps",
            "Skipped steps: no trainable token, or a gradient that is not finite",
        ),
        "learner/tokens_per_s": ("tokens/s", "`learner/num_tokens` per second of learner computation"),
        "learner/clip_fraction": ("share", "Tokens in the loss whose gradient was clipped"),
        "learner/ratio": ("", "Probability under the policy divided by that at sampling, mean over tokens"),
        "learner/kl": ("nats", "KL of the sampling policy to the current policy (k3), mean over tokens"),
        "learner/reference_kl": ("nats", "KL of the policy to the reference (k3), mean over tokens"),
        "learner/logprob_gap/mean": (
            "nats",
            "Mean absolute difference of engine and learner logprobs of the same version",
        ),
        "learner/logprob_gap/num_tokens": ("tokens", "Tokens over which the gap is measured"),
        "learner/importance/weight": ("", "Importance weight, mean over tokens"),
        "learner/importance/left_out_fraction": ("share", "Tokens that the importance weights exclude"),
        "learner/critic/loss": ("", "Loss of the critic"),
        "learner/critic/explained_variance": (
            "",
            "1 for a critic that predicts the returns, 0 for one that predicts their mean",
        ),
        "learner/information_gain/mean": ("", "Information gain of a turn, mean over all gyms"),
        "learner/information_gain/{gym}": ("", "Information gain of a turn in this gym"),
        "learner/information_gain/num_turns": ("turns", "Turns with a finite information gain"),
        "learner/information_gain/num_too_long": (
            "turns",
            "Turns without an information gain, since they are too long to be scored",
        ),
        "learner/num_dropped/{reason}": (
            "trajectories",
            "Trajectories of the step that the learners dropped, for this reason",
        ),
        "learner/num_masked": ("trajectories", "Trajectories left out since turns or tokens ran out"),
        "learner/num_left_out": ("samples", "Samples beyond the step's token budget"),
        "learner/budget_filled": ("share", "Used share of the step's token budget"),
        "learner/weights/num_bytes": ("bytes", "Size of the weights that are sent to the engines"),
        "learner/rebuilds": ("", "Number of times that the learners were replaced"),
    },
)
ROLLOUT = _section(
    "rollout",
    {
        "rollout/reward/mean": ("reward", "Score of a trajectory that did not fail, mean over all gyms"),
        "rollout/reward/{gym}": ("reward", "Score of a trajectory that did not fail, mean over this gym"),
        "rollout/turns/mean": ("turns", "Turns of a trajectory that did not fail"),
        "rollout/policy_tokens": (
            "tokens",
            "Tokens sampled by the policy in the groups resolved since the last step",
        ),
        "rollout/tokens_per_s": ("tokens/s", "`rollout/policy_tokens` per second of the step"),
        "rollout/group_duration_s/max": ("s", "Duration of the slowest group, from its order to its rewards"),
        "rollout/user_retries": ("calls", "Retried calls to simulated users"),
        "rollout/num_actors": ("processes", "Rollout actors, including restarting ones"),
        "engine/num_serving": ("processes", "Serving engines"),
        "engine/num_lost": ("processes", "Engines that died or hung"),
        "engine/requests/mean": ("requests", "Requests in flight at an engine, mean over time and engines"),
    },
)
USERS = _section(
    "users",
    {
        "users/{simulator}/goal_leaks": ("share", "Replies that reveal a hidden value without being asked"),
        "users/{simulator}/front_loading": ("share", "Facts stated in the first reply of a dialogue"),
        "users/{simulator}/agreeableness": ("share", "Yes-or-no questions and proposals answered with yes"),
        "users/{simulator}/repetition": ("share", "Replies that were already given to another question"),
        "users/{simulator}/contradictions": ("share", "Repeated facts that contradict the earlier statement"),
        "users/{simulator}/early_stop": ("share", "Dialogues that the user ended without reason"),
        "users/{simulator}/{gauge}/num_cases": ("", "Number of cases behind this share"),
        "users/{simulator}/failed/{reason}": (
            "trajectories",
            "Trajectories that failed because of this user",
        ),
        "users/{simulator}/concurrency/mean": ("calls", "Concurrent calls of one rollout actor"),
    },
)
TIME = _section(
    "time",
    {
        "time/step_s": ("s", "Duration of a driver step: the sum of the five stages below"),
        "time/wait_s": ("s", "Waiting until enough groups are ready"),
        "time/update_s": ("s", "The learners' update, as seen by the driver"),
        "time/sync_s": ("s", "Waiting until the weights are live in the engines"),
        "time/weights_s": ("s", "Learner time for exporting and sending weights"),
        "time/report_s": ("s", "Accounting, starting checkpoints, collecting metrics"),
        "time/learn_s": ("s", "Computation of the first learner"),
        "time/pack_weights_s": ("s", "Packing the weights"),
        "time/send_weights_s": ("s", "Sending the weights from GPU to GPU"),
        "time/engine_write_s": ("s", "Writing the weights for vLLM to read, on the slowest engine"),
        "time/engine_paused_s": ("s", "Pause of the slowest engine to load the weights"),
        "learner/idle/share": (
            "share",
            "Share of the step in which the learners neither computed nor sent weights",
        ),
        "engine/idle/share": (
            "share",
            "Share of the time since the last report without a request at an engine",
        ),
        "engine/paused/share": (
            "share",
            "Share of the time since the last report in which an engine was paused for weights",
        ),
        "rollout/time/{stage}/share": (
            "share",
            "Share of all turns' seconds: policy, queue, user, tool or reward",
        ),
        "rollout/turn_s/{gym}": ("s", "Mean duration of a turn in this gym"),
    },
)
LEDGER = _section(
    "ledger",
    {
        "ledger/issued": (
            "trajectories",
            "Trajectories ordered since the run began: trained + dropped + in flight",
        ),
        "ledger/trained": ("trajectories", "Trajectories trained on since the run began"),
        "ledger/dropped/{reason}": (
            "trajectories",
            "Trajectories dropped since the run began, for this reason",
        ),
        "ledger/in_flight": ("trajectories", "Trajectories ordered, and neither trained on nor dropped yet"),
        "buffer/age/mean": ("versions", "Age of a trained group's oldest token, mean over the step's groups"),
        "buffer/age/max": (
            "versions",
            "Age of a trained group's oldest token, maximum over the step's groups",
        ),
        "buffer/span/mean": ("versions", "Newest minus oldest policy version of one trajectory, mean"),
        "buffer/span/max": ("versions", "Newest minus oldest policy version of one trajectory, maximum"),
        "buffer/groups_ready": ("groups", "Finished groups that are fresh enough and wait for a step"),
        "buffer/slots_taken": ("groups", "Groups ordered whose weights are not live yet"),
        "buffer/puts_ignored": ("groups", "Groups delivered twice or too late since the buffer started"),
        "buffer/reissued": (
            "groups",
            "Groups reassigned to another rollout actor since the buffer started",
        ),
        "buffer/archive_failures": (
            "files",
            "Archive files that could not be written since the buffer started",
        ),
        "buffer/journal_failures": ("", "Retried writes of the write-ahead log since the buffer started"),
        "checkpoint/failures": (
            "checkpoints",
            "Checkpoints that could not be written or copied since the driver started",
        ),
    },
)
CATALOGUE: tuple[Metric, ...] = (*TRAIN, *ROLLOUT, *USERS, *TIME, *LEDGER)
"""Keys of metrics.jsonl other than `step`."""

STEP = Metric(key="step", section="train", unit="", meaning="Optimizer steps of GRPO so far")
STEP_AT = Metric(
    key="time/last_step_at_s",
    section="time",
    unit="s",
    meaning="Time of the last step's end, seconds since 1970",
)
STEPS = Metric(
    key="steps",
    section="train",
    unit="steps",
    meaning="Steps taken by this driver, including repeated ones",
    kind="counter",
)
DURATION = Metric(
    key="rollout/group_duration_s",
    section="rollout",
    unit="s",
    meaning="Groups by duration, from order to rewards",
    kind="histogram",
)
SCORES: dict[str, Metric] = {
    split: Metric(key=f"{place}/{{gym}}/score", section="eval", unit="reward", meaning=meaning)
    for split, place, meaning in (
        ("test", "evaluation", "Mean score on test tasks of this gym at the last evaluation"),
        ("validation", "validation", "Mean score on validation tasks of this gym at the last validation"),
    )
}
"""Scores by the split of the tasks."""
ENDPOINT: tuple[Metric, ...] = (STEP, STEP_AT, STEPS, DURATION, *SCORES.values())
"""Metrics that only the endpoint has, since a line of metrics.jsonl is one step."""
EXPORTED: tuple[Metric, ...] = (*CATALOGUE, *ENDPOINT)


@lru_cache(maxsize=1024)
def find(key: str) -> tuple[Metric, Mapping[str, str]] | None:
    """The metric of a key of metrics.jsonl, and its label values; a metric without labels takes precedence.
    None if the key is unknown.

    Example: `find("rollout/reward/tau")` is the metric `rollout/reward/{gym}` and `{"gym": "tau"}`."""
    for metric in sorted(CATALOGUE, key=lambda one: len(one.labels)):
        labels = metric.labels_of(key)
        if labels is not None:
            return metric, labels
    return None
