"""The fields of KubeRay's custom resources (ray.io/v1, KubeRay 1.6), as a JSON schema that refuses all others.

The resource definitions themselves are megabytes, nearly all of which is Kubernetes' pod template written out again; that part is
checked by Kubernetes' own schema (`pod_templates`). What is left are the names below, of KubeRay's API reference:
https://docs.ray.io/en/master/cluster/kubernetes/references/api.html. An API server drops what it does not know without a word, so
a slip would otherwise show as a setting without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_ANYTHING = {"type": "object"}


def _closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


_HEAD = _closed(
    ("rayStartParams", "template"),
    rayStartParams=_TEXTS, template=_ANYTHING, serviceType={"type": "string"}, headService=_ANYTHING,
    enableIngress={"type": "boolean"},
)  # fmt: skip
_WORKERS = _closed(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName={"type": "string"}, replicas=_COUNT, minReplicas=_COUNT, maxReplicas=_COUNT, numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT, rayStartParams=_TEXTS, template=_ANYTHING, scaleStrategy=_ANYTHING, suspend={"type": "boolean"},
)  # fmt: skip
_CLUSTER = _closed(
    ("headGroupSpec",),
    rayVersion={"type": "string"},
    authOptions=_closed((), mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
    enableInTreeAutoscaling={"type": "boolean"}, autoscalerOptions=_ANYTHING, gcsFaultToleranceOptions=_ANYTHING,
    headServiceAnnotations=_TEXTS, suspend={"type": "boolean"}, managedBy={"type": "string"},
)  # fmt: skip
_SERVICE = _closed(
    ("serveConfigV2", "rayClusterConfig"),
    serveConfigV2={"type": "string"},
    rayClusterConfig=_CLUSTER,
    upgradeStrategy=_closed((), type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}),
    serveService=_ANYTHING, excludeHeadPodFromServeSvc={"type": "boolean"}, rayClusterDeletionDelaySeconds=_COUNT,
)  # fmt: skip
_JOB = _closed(
    ("entrypoint", "rayClusterSpec"),
    entrypoint={"type": "string"}, metadata=_TEXTS, runtimeEnvYAML={"type": "string"}, jobId={"type": "string"},
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=_COUNT, activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"type": "boolean"}, ttlSecondsAfterFinished=_COUNT, suspend={"type": "boolean"},
    rayClusterSpec=_CLUSTER, clusterSelector=_TEXTS, submitterPodTemplate=_ANYTHING, submitterConfig=_ANYTHING,
    entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"}, entrypointResources={"type": "string"},
    managedBy={"type": "string"}, deletionStrategy=_ANYTHING,
)  # fmt: skip
_METADATA = _closed((), name={"type": "string"}, generateName={"type": "string"}, labels=_TEXTS, annotations=_TEXTS)

SCHEMAS = {
    kind: _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=_METADATA, spec=spec,
    )
    for kind, spec in {"RayService": _SERVICE, "RayJob": _JOB}.items()
}  # fmt: skip
"""By kind."""


def cluster_of(resource: Mapping[str, Any]) -> dict[str, Any]:
    """The Ray cluster that a resource describes."""
    spec = resource["spec"]
    cluster: dict[str, Any] = spec["rayClusterConfig" if resource["kind"] == "RayService" else "rayClusterSpec"]
    return cluster


def groups_of(resource: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The head's group and the workers'."""
    cluster = cluster_of(resource)
    yield cluster["headGroupSpec"]
    yield from cluster.get("workerGroupSpecs", ())


def pod_templates(resource: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each pod template as a pod that Kubernetes' own schema can check."""
    for group in groups_of(resource):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "checked"}, **group["template"]}
