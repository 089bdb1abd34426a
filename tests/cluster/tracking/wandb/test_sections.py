"""Names in W&B: the section, then the whole key of metrics.jsonl."""

import pytest

from cluster.config.run_config import RunConfig
from cluster.tracking.wandb.history import SECTION_BY_PREFIX, SECTIONS, axis_of, dashboard_key
from cluster.tracking.wandb.workspace import layout, workspace_of

MOVED = tuple(SECTION_BY_PREFIX)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("learner/logprob_gap/mean", "train/learner/logprob_gap/mean"),
        ("learner/idle/share", "time/learner/idle/share"),
        ("engine/num_serving", "rollout/engine/num_serving"),
        ("rollout/reward/mean", "rollout/reward/mean"),
        ("rollout/time/user/share", "time/rollout/time/user/share"),
        ("users/rules/early_stop", "users/rules/early_stop"),
        ("buffer/age/max", "ledger/buffer/age/max"),
        ("checkpoint/failures", "ledger/checkpoint/failures"),
        ("ledger/dropped/flat", "ledger/dropped/flat"),
        ("time/wait_s", "time/wait_s"),
        ("sft/loss", "sft/loss"),
        ("new_room/thing", "train/new_room/thing"),
        ("step", "step"),
    ],
)
def test_a_metric_keeps_its_key_after_its_section(key: str, shown: str) -> None:
    assert dashboard_key(key) == shown


def test_only_the_cold_start_has_an_axis_of_its_own() -> None:
    assert {section: axis_of(section) for section in SECTIONS if axis_of(section) != "step"} == {
        "sft": "sft/step"
    }


def test_a_dashboard_uses_the_names_of_logged_metrics() -> None:
    sections = layout(RunConfig())
    assert tuple(section.name for section in sections) == SECTIONS
    for section in sections:
        assert section.panels
        for key in (key for panel in section.panels for key in panel.keys):
            short = key.removeprefix(f"{section.name}/")
            logged = short if short.startswith(MOVED) else key
            assert dashboard_key(logged) == key


def test_a_workspace_is_made_of_the_layout() -> None:
    pytest.importorskip("wandb_workspaces")
    workspace = workspace_of(RunConfig(), entity="tester")
    assert [section.name for section in workspace.sections] == list(SECTIONS)
    axes = {panel.x for section in workspace.sections for panel in section.panels if hasattr(panel, "x")}
    assert axes == {"step", "sft/step"}
