"""Dry run of `userrl check`: prints the processes, sizes and files of a run without starting anything."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from cluster.config.run_config import RunConfig
from cluster.console.output import put_json, result_console
from cluster.preflight.chat_template import check_template
from cluster.preflight.policy import is_hub_name
from cluster.ray_cluster.placement import PlannedProcess, gpu_share, planned_processes, this_machine
from cluster.run_folder.paths import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Processes, sizes and files of a run."""

    run: str
    state: str
    """fresh, stopped (it will resume) or finished."""
    processes: list[PlannedProcess]
    num_slots: int
    """Groups that may be in flight at the same time: the staleness bound."""
    num_train_trajectories: int
    num_evaluation_trajectories: int
    """Over all three evaluations."""
    files: list[str]
    notes: list[str]


def make_plan(config: RunConfig) -> Plan:
    """Computed from the config, this machine and the run folder."""
    folder, machine = RunFolder.of(config), this_machine()
    group_trajectories = config.buffer.groups_per_step * config.rollout.group_size
    paths = (folder.config, folder.metrics, folder.evaluation, folder.trajectories, folder.checkpoints)
    return Plan(
        run=config.run.name,
        state=folder.state(num_steps=config.grpo.num_steps),
        processes=planned_processes(config, gpu_share=gpu_share(config, num_gpus=machine.num_gpus)),
        num_slots=config.buffer.groups_per_step * (config.buffer.max_off_policy_steps + 1),
        num_train_trajectories=config.grpo.num_steps * group_trajectories,
        num_evaluation_trajectories=3 * len(config.gyms.evaluated) * config.evaluation.tasks_per_gym,
        files=[str(path) for path in (*paths, folder.model, folder.reward_curve, folder.wandb)],
        notes=_notes(config),
    )


def _notes(config: RunConfig) -> list[str]:
    machine, path = this_machine(), config.policy.path
    gyms = ", ".join(f"{gym} {weight:g}" for gym, weight in config.gyms.trained.items())
    max_turns, difficulty = config.rollout.max_turns, config.gyms.difficulty
    turns = "turns as each gym allows" if max_turns is None else f"at most {max_turns} turns"
    notes = [f"gyms by weight: {gyms}; difficulty {difficulty}; {turns}"]
    if path is None:
        notes.append("policy: a small Qwen3-architecture model with random weights, created by this run")
    elif is_hub_name(path):
        notes.append(f"policy: {path} from the hub; its content is only checked when it is loaded")
    else:
        form, stop = check_template(Path(path).expanduser(), key="policy.path")
        tools = "by its chat template" if form.has_tools else "as text, which its chat template does not do"
        notes.append(f"policy: the folder {path}; it is told its tools {tools}; {stop} ends a completion")
    if config.ray.address is None:
        notes.append(f"Ray starts on this machine, with {machine.num_cpus} CPUs and {machine.num_gpus} GPUs")
    else:
        notes.append(
            f"joins the Ray cluster at {config.ray.address}; its CPUs and GPUs are only checked at the start"
        )
    nodes = ", ".join(f"{kind} on {name}" for kind, name in config.ray.nodes.model_dump().items() if name)
    return [*notes, f"nodes: {nodes}"] if nodes else notes


def print_plan(plan: Plan, *, as_json: bool) -> None:
    """A table for people, or one JSON object."""
    if as_json:
        return put_json(asdict(plan))
    console = result_console()
    table = Table(title=f"run {plan.run}, {plan.state}")
    for column in ("process", "count", "CPUs each", "GPUs each", "purpose"):
        table.add_column(column, justify="left" if column in ("process", "purpose") else "right")
    for process in plan.processes:
        cpus, gpus = f"{process.num_cpus:g}", f"{process.num_gpus:g}"
        table.add_row(process.name, str(process.count), cpus, gpus, process.job)
    console.print(table)
    for note in plan.notes:
        console.print(note, soft_wrap=True)
    console.print(
        f"slots: {plan.num_slots} groups in flight; trains on {plan.num_train_trajectories} trajectories; "
        f"evaluates on {plan.num_evaluation_trajectories}",
        soft_wrap=True,
    )
    console.print(f"writes: {', '.join(plan.files)}", soft_wrap=True)
