"""The metric catalogue lists exactly the metrics of the code; the page that is generated from it."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.trajectory_table import TURN_STAGES
from cluster.config.run_config import RunConfig
from cluster.console.progress import STAGES
from cluster.tracking.metric_catalogue import CATALOGUE, ENDPOINT, EXPORTED, SECTIONS, find
from cluster.tracking.metric_docs import PAGE, with_tables
from cluster.tracking.wandb.history import BEST, BEST_STEP, dashboard_key, section_of
from cluster.tracking.wandb.history import SECTIONS as WANDB_SECTIONS
from cluster.tracking.wandb.workspace import layout
from learners.buffer.ledger import Ledger
from simulators.users.quality_metrics import SHARES
from tests.cluster.sample_run_folders import make_run
from tests.syntax_trees import tree_of

ROOT = Path(__file__).parents[3]
ROOMS = ("simulators", "actors", "rewards", "learners", "cluster")
FIRST = ("learner", "rollout", "engine", "users", "time", "ledger", "buffer", "checkpoint", "train")
"""First parts of a key of metrics.jsonl, and of its name in W&B."""
KEY = re.compile(rf"({'|'.join(FIRST)})(/([a-z0-9_]|<any>)+)+")
READERS = ("cluster/tracking/metric_catalogue.py", "cluster/tracking/alerts.py", "cluster/tracking/wandb/")
READERS += ("cluster/console/", "cluster/report/", "cluster/status/", "cluster/driver/train.py")
READERS += ("cluster/workers/autoscaler.py",)
"""Files and folders that read metrics and make none."""
TABLES = {
    name
    for section in layout(RunConfig())
    for panel in section.panels
    if panel.kind == "table"
    for name in panel.keys
}
"""Names in W&B."""
OF_A_RUN = re.findall(
    r"\S+",
    """
    step time/wait_s time/update_s time/sync_s time/weights_s time/report_s time/step_s time/learn_s
    time/pack_weights_s time/engine_write_s time/engine_paused_s rollout/reward/mean rollout/reward/function
    rollout/reward/turtle rollout/turns/mean rollout/policy_tokens rollout/tokens_per_s
    rollout/group_duration_s/max rollout/user_retries rollout/time/policy/share rollout/time/queue/share
    rollout/turn_s/function rollout/turn_s/turtle rollout/num_actors users/rules/goal_leaks
    users/rules/goal_leaks/num_cases users/rules/early_stop users/rules/early_stop/num_cases
    users/qwen/failed/role_flip users/qwen/concurrency/mean learner/loss learner/entropy learner/grad_norm
    learner/lr learner/num_tokens learner/num_loss_tokens learner/num_skipped learner/tokens_per_s
    learner/clip_fraction learner/ratio learner/kl learner/logprob_gap/num_tokens learner/logprob_gap/mean
    learner/num_dropped/failed learner/num_dropped/bad_logprob learner/idle/share learner/rebuilds
    learner/weights/num_bytes buffer/age/mean buffer/age/max buffer/span/mean buffer/span/max ledger/issued
    ledger/trained ledger/dropped/flat ledger/in_flight buffer/groups_ready buffer/slots_taken
    buffer/puts_ignored buffer/reissued buffer/archive_failures buffer/journal_failures engine/idle/share
    engine/paused/share engine/requests/mean engine/num_serving engine/num_lost checkpoint/failures
    """,
)
"""Keys of a line that the quick start has written, with a hosted user in addition to the rules."""


def keys_in_the_code(*, of_readers: bool) -> Iterator[tuple[str, str]]:
    """(file, key) of every text in the rooms that is the key of a metric; `<any>` for a formatted value."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if not of_readers and path.relative_to(ROOT).as_posix().startswith(READERS):
                continue
            for node in ast.walk(tree_of(path)):
                text = text_of(node)
                if KEY.fullmatch(text) and not is_media(text):
                    yield path.relative_to(ROOT).as_posix(), text


def is_media(key: str) -> bool:
    """Whether this is the name of a W&B table or histogram, which is no metric."""
    return key in TABLES or key.endswith("/histogram")


def metrics_key(key: str) -> str:
    """The key of metrics.jsonl of a name in W&B, which has a section in front and may end in the suffix of
    the best value; any other key unchanged."""
    key = re.sub(rf"/({BEST}|{BEST_STEP})$", "", key)
    section, _, short = key.partition("/")
    return short if section in WANDB_SECTIONS and dashboard_key(short) == key else key


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "<any>" for part in node.values)
    return ""


def sample(key: str) -> str:
    """A key with something in its braces."""
    return re.sub(r"{\w+}", "x", key)


def fits(pattern: str, key: str) -> bool:
    return re.fullmatch(pattern.replace("<any>", "[^/]+"), key) is not None


def test_every_key_of_a_real_line_is_in_the_catalogue(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", num_steps=1)
    made = json.loads(folder.metrics.read_text())
    assert [key for key in {*OF_A_RUN, *made} - {"step"} if find(key) is None] == []


@pytest.mark.medium
def test_every_key_in_the_code_is_in_the_catalogue() -> None:
    found = set(keys_in_the_code(of_readers=True))
    assert len(found) > 80
    unknown = [
        (file, key)
        for file, key in found
        if not any(fits(metrics_key(key), sample(one.key)) for one in EXPORTED)
        and find(metrics_key(key)) is None
    ]
    assert unknown == []


@pytest.mark.medium
def test_no_key_of_the_catalogue_is_dead() -> None:
    made = {key for _, key in keys_in_the_code(of_readers=False)}
    dead = [one.key for one in CATALOGUE if not any(fits(key, sample(one.key)) for key in made)]
    assert dead == []


def test_the_catalogue_has_every_value_of_formatted_keys() -> None:
    keys = {one.key for one in CATALOGUE}
    assert {f"time/{stage}_s" for stage in STAGES} | {"time/step_s"} <= keys
    others = {"learn", "pack_weights", "send_weights", "engine_write", "engine_paused"}
    measured = {key for key in keys if key.startswith("time/")}
    assert measured == {f"time/{name}_s" for name in {*STAGES, *others, "step"}}
    gauges = {key.split("/")[2] for key in keys if key.startswith("users/") and key.count("/") == 2}
    assert gauges == set(SHARES)
    ledger = Ledger(issued=3, trained=1, dropped={"flat": 1}, in_flight=1)
    assert all(find(key) for key in ledger.metrics())
    assert {find(f"rollout/time/{stage}/share") is not None for stage in TURN_STAGES} == {True}


def test_a_key_is_one_metric_with_its_labels() -> None:
    mean, gym = find("rollout/reward/mean"), find("rollout/reward/tau")
    assert mean is not None and mean[0].key == "rollout/reward/mean" and mean[1] == {}
    assert gym is not None and gym[0].key == "rollout/reward/{gym}" and gym[1] == {"gym": "tau"}
    failed = find("users/my-model.2/failed/role_flip")
    assert failed is not None and failed[1] == {"simulator": "my-model.2", "reason": "role_flip"}
    assert find("rollout/reward/tau/more") is None and find("loss") is None


@pytest.mark.parametrize(
    ("key", "series"),
    [
        ("time/wait_s", "ray_userrl_time_wait_seconds"),
        ("rollout/turn_s/tau", "ray_userrl_rollout_turn_seconds"),
        ("rollout/group_duration_s/max", "ray_userrl_rollout_group_duration_max_seconds"),
        ("rollout/time/user/share", "ray_userrl_rollout_time_ratio"),
        ("learner/idle/share", "ray_userrl_learner_idle_ratio"),
        ("learner/clip_fraction", "ray_userrl_learner_clip_ratio"),
        ("learner/importance/left_out_fraction", "ray_userrl_learner_importance_left_out_ratio"),
        ("users/rules/goal_leaks", "ray_userrl_users_goal_leaks_ratio"),
        ("learner/weights/num_bytes", "ray_userrl_learner_weights_bytes"),
        ("rollout/tokens_per_s", "ray_userrl_rollout_tokens_per_second"),
        ("rollout/policy_tokens", "ray_userrl_rollout_policy_tokens_total"),
        ("users/rules/failed/role_flip", "ray_userrl_users_failed_total"),
        ("ledger/dropped/flat", "ray_userrl_ledger_dropped"),
    ],
)
def test_names_at_the_endpoint_end_in_their_units(key: str, series: str) -> None:
    found = find(key)
    assert found is not None and found[0].series == series


def test_names_are_valid_for_prometheus_and_unique() -> None:
    names = [one.name for one in EXPORTED]
    assert len(set(names)) == len(names) and len({one.key for one in EXPORTED}) == len(names)
    assert [name for name in names if not re.fullmatch(r"userrl(_[a-z0-9]+)+", name)] == []
    assert [one.key for one in EXPORTED for label in one.labels if label in ("run", "le")] == []
    assert {one.section for one in EXPORTED} == set(SECTIONS)
    assert {one.key for one in CATALOGUE} & {one.key for one in ENDPOINT} == set()


def test_wandb_shows_a_metric_in_its_section_of_the_catalogue() -> None:
    others = {one.key: (one.section, section_of(one.key)) for one in CATALOGUE}
    assert {key: both for key, both in others.items() if both[0] != both[1]} == {}


def test_the_page_has_the_catalogues_tables() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run `python -m cluster.tracking.metric_docs`"
    assert all(f"`{one.series}`" in page for one in EXPORTED)


def test_every_metric_of_the_page_is_exported() -> None:
    named = set(re.findall(r"\bray_userrl_\w*[a-z]", PAGE.read_text(encoding="utf-8")))
    assert named <= {one.series for one in EXPORTED}
