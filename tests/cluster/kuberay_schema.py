"""What KubeRay and Kubernetes take, as JSON schemas: of the fields that our manifests use, and no others.

Written by hand from KubeRay's API reference of release 1.6.2 (docs/reference/api.md there: RayClusterSpec,
HeadGroupSpec, WorkerGroupSpec, AutoscalerOptions, AuthOptions, RayJobSpec) and Kubernetes' of core/v1 and
networking.k8s.io/v1. `additionalProperties` is false at every level: a misspelt field fails, and so does a
true one that is not listed yet. Types matter to the API server: KubeRay's maps are strings to strings, so
`num-cpus: 0` is refused there as it is here.
"""

from typing import Any

Schema = dict[str, Any]


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema: Schema, *, least: int = 1) -> Schema:
    return {"type": "array", "items": schema, "minItems": least}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


TEXT: Schema = {"type": "string", "minLength": 1}
YES_NO: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "integer", "minimum": 1}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY, "minProperties": 1}
RESOURCES = fields(requests=QUANTITIES, limits=QUANTITIES)
METADATA = fields(("name",), name=NAME)

PROBE = fields(
    ("httpGet",),
    httpGet=fields(("port",), path={"type": "string", "pattern": "^/"}, port=PORT),
    initialDelaySeconds=COUNT,
    periodSeconds=SECONDS,
    timeoutSeconds=SECONDS,
    failureThreshold=SECONDS,
)
CONTAINER = fields(
    ("name", "image", "resources"),
    name=NAME,
    image=TEXT,
    ports=items(fields(("containerPort",), name=NAME | {"maxLength": 15}, containerPort=PORT)),
    envFrom=items(fields(("secretRef",), secretRef=fields(("name",), name=NAME, optional=YES_NO))),
    volumeMounts=items(
        fields(("name", "mountPath"), name=NAME, mountPath={"type": "string", "pattern": "^/"})
    ),
    resources=RESOURCES,
    readinessProbe=PROBE,
    livenessProbe=PROBE,
)
POD = fields(
    ("spec",),
    spec=fields(
        ("containers",),
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        terminationGracePeriodSeconds=COUNT,
        nodeSelector=TEXTS,
        tolerations=items(
            fields(
                key=TEXT,
                operator=one_of("Exists", "Equal"),
                value=TEXT,
                effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
            )
        ),
        containers=items(CONTAINER),
        volumes=items(
            fields(("name",), name=NAME, persistentVolumeClaim=fields(("claimName",), claimName=NAME))
        ),
    ),
)
HEAD_GROUP = fields(
    ("template",),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=POD,
)
WORKER_GROUP = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=SECONDS,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER_SPEC = fields(
    ("headGroupSpec",),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields(mode=one_of("disabled", "token"), secretName=NAME),
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
    ),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs=items(WORKER_GROUP),
)
JOB_SPEC = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    shutdownAfterJobFinishes=YES_NO,
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)
SELECTOR = fields(
    matchLabels=TEXTS,
    matchExpressions=items(
        fields(
            ("key", "operator"),
            key=TEXT,
            operator=one_of("In", "NotIn", "Exists", "DoesNotExist"),
            values=items(TEXT),
        )
    ),
)


INGRESS: Schema = {
    "type": "object",
    "properties": {
        "from": items(fields(podSelector=SELECTOR, namespaceSelector=SELECTOR)),
        "ports": items(fields(protocol=one_of("TCP", "UDP", "SCTP"), port=PORT)),
    },
    "additionalProperties": False,
}


def document(version: str, kind: str, spec: Schema) -> Schema:
    """A whole manifest."""
    names = {"apiVersion": {"const": version}, "kind": {"const": kind}}
    return fields((*names, "metadata", "spec"), **names, metadata=METADATA, spec=spec)


SCHEMAS: dict[str, Schema] = {
    "RayCluster": document("ray.io/v1", "RayCluster", CLUSTER_SPEC),
    "RayJob": document("ray.io/v1", "RayJob", JOB_SPEC),
    "PersistentVolumeClaim": document(
        "v1",
        "PersistentVolumeClaim",
        fields(
            ("accessModes", "resources"),
            accessModes=items(one_of("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
            resources=RESOURCES,
        ),
    ),
    "NetworkPolicy": document(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        fields(
            ("podSelector",),
            podSelector=SELECTOR,
            policyTypes=items(one_of("Ingress", "Egress")),
            ingress=items(INGRESS),
        ),
    ),
}
