"""The manifests are valid for KubeRay, Kubernetes and `ray up`, and fit the recipe."""

import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from cluster.config.run_config import load
from cluster.jobs.client import STOP
from cluster.jobs.submit import check_for_cluster
from tests.cluster.kuberay_schema import SCHEMAS

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "cluster" / "manifests"
RECIPE = ROOT / "recipes" / "cluster-qwen3-8b.toml"
Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text(encoding="utf-8")))


def cluster_spec() -> Document:
    return documents("raycluster.yaml")[0]["spec"]


def node_types() -> Document:
    """As Ray's own autoscaler reads the RayCluster."""
    return autoscaling_config._generate_available_node_types_from_ray_cr_spec(cluster_spec())


def aws() -> Document:
    """As `ray up` reads its file, defaults filled in."""
    return prepare_config(documents("aws.yaml")[0])


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "shared.yaml"])
def test_every_document_is_valid_for_kubernetes(name: str) -> None:
    for document in documents(name):
        jsonschema.validate(document, SCHEMAS[document["kind"]])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "workerGroupSpecs", 0, "groupName"), None),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "workerGroupSpecs", 0, "resources", "engine-nodes"), 1),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "image"), None),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "autoscalerOptions", "version"), 2),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_the_validation_is_strict(path: tuple[str | int, ...], value: object) -> None:
    document: Any = copy.deepcopy(documents("raycluster.yaml")[0])
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS["RayCluster"])


def test_the_rayjob_has_the_same_cluster_as_the_raycluster() -> None:
    assert documents("rayjob.yaml")[0]["spec"]["rayClusterSpec"] == cluster_spec()


def test_rays_autoscaler_reads_five_node_types() -> None:
    types = node_types()
    assert {name: kind["resources"].get("GPU", 0) for name, kind in types.items()} == {
        "headgroup": 0,
        "engines": 4,
        "learners": 4,
        "simulators": 1,
        "rollouts": 0,
    }
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["rollouts"]["max_workers"] == 64


def test_ray_up_accepts_the_file() -> None:
    validate_config(aws())
    types = aws()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    spot = [name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]]
    assert spot == ["rollouts"]


def test_only_rollouts_run_on_preemptible_nodes() -> None:
    spot = [
        g["groupName"] for g in cluster_spec()["workerGroupSpecs"] if "nodeSelector" in g["template"]["spec"]
    ]
    assert spot == ["rollouts"]


@pytest.mark.parametrize("types", [node_types(), aws()["available_node_types"]], ids=["kuberay", "aws"])
def test_every_process_kind_has_nodes_and_each_resource_is_offered_by_one_node_type(
    types: Document,
) -> None:
    nodes = load(RECIPE).ray.nodes
    wanted = {"engines": nodes.engine, "learners": nodes.learner}
    wanted |= {"simulators": nodes.simulator, "rollouts": nodes.rollout}
    offered = {
        kind: sorted(name for name in config["resources"] if name.endswith("-nodes"))
        for kind, config in types.items()
        if kind in wanted
    }
    assert offered == {kind: [name] for kind, name in wanted.items()}


def test_the_recipe_fits_the_cluster() -> None:
    config, types = load(RECIPE), node_types()
    check_for_cluster(config, recipe=RECIPE)
    engine, learner = config.engine, config.learner
    per_node = types["engines"]["resources"]["GPU"]
    assert per_node % engine.tensor_parallel_size == 0
    assert engine.num_engines * engine.tensor_parallel_size <= per_node * types["engines"]["max_workers"]
    learner_gpus = types["learners"]["resources"]["GPU"] * types["learners"]["max_workers"]
    assert learner.num_learners * learner.num_gpus_per_learner <= learner_gpus
    (llm,) = config.simulator.llms()
    assert llm.num_gpus <= types["simulators"]["resources"]["GPU"]
    assert types["rollouts"]["min_workers"] >= 1  # a run without a living rollout actor ends


def test_the_job_trains_the_mounted_recipe() -> None:
    (job,) = documents("rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert (ROOT / words[words.index("train") + 1]) == RECIPE
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": STOP}


def test_every_cluster_requires_a_token_that_is_in_no_manifest() -> None:
    assert cluster_spec()["authOptions"] == {"mode": "token", "secretName": "userrl-token"}
    starts = [*aws()["head_start_ray_commands"], *aws()["worker_start_ray_commands"]]
    for line in (line for line in starts if "ray start" in line):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in line
    for name in ("raycluster.yaml", "rayjob.yaml", "shared.yaml", "aws.yaml"):
        text = (MANIFESTS / name).read_text()
        assert "RAY_AUTH_TOKEN=" not in text
        assert "API_KEY" not in text


def test_the_head_on_aws_keeps_its_dashboard_on_loopback() -> None:
    (line,) = [line for line in aws()["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in line.split()


def test_ray_start_knows_every_flag_of_the_manifests() -> None:
    known = {flag for option in start.params for flag in option.opts}
    lines = [*aws()["head_start_ray_commands"], *aws()["worker_start_ray_commands"]]
    given = {word.partition("=")[0] for line in lines for word in line.split() if word.startswith("--")}
    for group in (cluster_spec()["headGroupSpec"], *cluster_spec()["workerGroupSpecs"]):
        given |= {f"--{name}" for name in group["rayStartParams"]}
    assert given <= known
    assert {"--head", "--address", "--dashboard-agent-listen-port"} <= given


def test_every_pod_is_probed_and_has_the_disk_of_the_runs() -> None:
    spec = cluster_spec()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
        assert container["volumeMounts"] == [{"name": "runs", "mountPath": load(RECIPE).run.folder}]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    (claim,) = [d for d in documents("shared.yaml") if d["kind"] == "PersistentVolumeClaim"]
    volumes = [group["template"]["spec"]["volumes"] for group in groups]
    assert all(
        v == [{"name": "runs", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}]
        for v in volumes
    )
