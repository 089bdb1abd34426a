"""Default W&B workspace of a project: panels by section as plain data (`layout`), saved to W&B by
`save_workspace`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.trajectory_table import TURN_STAGES
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.console.progress import STAGES
from cluster.tracking.wandb.history import SECTIONS, STEP, axis_of
from learners.drop_reasons import LEDGER_REASONS
from simulators.users.quality_metrics import SHARES

VIEW = "UserRL"
PanelKind = Literal["lines", "areas", "table", "number"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkspacePanel:
    """One panel of a section."""

    title: str
    keys: Sequence[str]
    """Names in W&B: several for lines, one for a table or number."""
    kind: PanelKind = "lines"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkspaceSection:
    """A section of panels."""

    name: str
    panels: Sequence[WorkspacePanel]
    is_open: bool = True


def layout(config: RunConfig) -> list[WorkspaceSection]:
    """Sections in the order of `SECTIONS`, with panels of the recipe's gyms and users."""
    gyms = config.gyms.evaluated
    users = [user.name for user in config.simulator.users]
    by_name = {
        "train": _train(),
        "rollout": _rollout(gyms),
        "users": [_lines(gauge, [f"users/{name}/{gauge}" for name in users]) for gauge in SHARES],
        "time": _time(gyms),
        "ledger": _ledger(),
        "eval": _eval(gyms),
        "sft": [_lines("loss", ["sft/loss"]), _lines("entropy", ["sft/entropy"])],
    }
    return [WorkspaceSection(name=name, panels=by_name[name], is_open=name != "sft") for name in SECTIONS]


def _lines(title: str, keys: Sequence[str], *, kind: PanelKind = "lines") -> WorkspacePanel:
    return WorkspacePanel(title=title, keys=keys, kind=kind)


def _train() -> list[WorkspacePanel]:
    names = ("loss", "entropy", "grad_norm", "lr", "clip_fraction", "tokens_per_s")
    return [
        *(_lines(name, [f"train/learner/{name}"]) for name in names),
        _lines("KL", ["train/learner/kl", "train/learner/reference_kl"]),
        _lines("logprob gap of engine and learner", ["train/learner/logprob_gap/mean"]),
    ]


def _rollout(gyms: Sequence[str]) -> list[WorkspacePanel]:
    return [
        _lines("reward", ["rollout/reward/mean"]),
        _lines("reward by gym", [f"rollout/reward/{gym}" for gym in gyms]),
        _lines("best reward", ["rollout/reward/mean/best"], kind="number"),
        _lines("turns", ["rollout/turns/mean"]),
        _lines("tokens a second", ["rollout/tokens_per_s"]),
        _lines("serving engines, rollout actors", ["rollout/engine/num_serving", "rollout/num_actors"]),
        _lines("dialogues", ["rollout/dialogues"], kind="table"),
        _lines("a group side by side", ["rollout/group"], kind="table"),
    ]


def _time(gyms: Sequence[str]) -> list[WorkspacePanel]:
    idle = ["time/learner/idle/share", "time/engine/idle/share", "time/engine/paused/share"]
    turns = [f"time/rollout/time/{stage}/share" for stage in TURN_STAGES]
    return [
        _lines("seconds of a step by stage", [f"time/{stage}_s" for stage in STAGES], kind="areas"),
        _lines("time of a turn by stage", turns, kind="areas"),
        _lines("idle", idle),
        _lines("seconds of a turn by gym", [f"time/rollout/turn_s/{gym}" for gym in gyms]),
    ]


def _ledger() -> list[WorkspacePanel]:
    return [
        _lines("trajectories", [f"ledger/{name}" for name in ("issued", "trained", "in_flight")]),
        _lines("dropped", [f"ledger/dropped/{reason}" for reason in LEDGER_REASONS], kind="areas"),
        _lines("age", ["ledger/buffer/age/mean", "ledger/buffer/age/max"]),
        _lines("reassigned groups", ["ledger/buffer/reissued"]),
    ]


def _eval(gyms: Sequence[str]) -> list[WorkspacePanel]:
    scores = ["eval/test/average/score", "eval/validation/average/score"]
    return [
        _lines("score", scores),
        *(_lines(f"best, {key.split('/')[1]}", [f"{key}/best"], kind="number") for key in scores),
        _lines("test score by gym", [f"eval/test/{gym}/score" for gym in gyms]),
        _lines("matrix", ["eval/test/matrix"], kind="table"),
        _lines("dialogues", ["eval/test/dialogues"], kind="table"),
    ]


def save_workspace(config: RunConfig, *, entity: str | None) -> str:
    """Creates a view of the project in W&B and returns its URL. Raises `BadInput` if not logged in, and W&B's
    errors if it cannot be reached."""
    import wandb
    from wandb.errors import UsageError

    try:
        api = wandb.Api()
    except UsageError:
        raise BadInput("WANDB_API_KEY is not set: set it, or run `wandb login`") from None
    owner = entity or api.default_entity
    if not owner:
        raise BadInput(
            "--entity: this key has no default entity: give the user or team that owns the project"
        )
    workspace = workspace_of(config, entity=owner)
    workspace.save()
    info(f"{VIEW}: a view of {owner}/{config.tracking.project}; choose it as the project's default there")
    return workspace.url


def workspace_of(config: RunConfig, *, entity: str) -> Any:
    """The layout as an unsaved workspace of W&B's library."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=config.tracking.project,
        name=VIEW,
        sections=[_section(section) for section in layout(config)],
        settings=ws.WorkspaceSettings(x_axis=STEP, group_by_prefix="first"),
        auto_generate_panels=True,  # for histograms and everything that the layout lacks
    )


def _section(section: WorkspaceSection) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Section(
        name=section.name,
        panels=[_panel(panel, axis=axis_of(section.name)) for panel in section.panels],
        is_open=section.is_open,
    )


def _panel(panel: WorkspacePanel, *, axis: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.keys[0])
    if panel.kind == "number":
        return wr.ScalarChart(title=panel.title, metric=wr.SummaryMetric(panel.keys[0]))
    style = "stacked-area" if panel.kind == "areas" else "line"
    return wr.LinePlot(title=panel.title, x=axis, y=list(panel.keys), plot_type=style)
