"""Schemas of KubeRay's RayCluster and RayJob, as strict as `kubectl apply` is.

What KubeRay itself defines, from its API reference (v1, release 1.7): pod templates are Kubernetes' own.
A folder with the operator's CRDs, named by ``KUBERAY_CRDS``, has all of it: :func:`crd`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

TEXT, WHOLE, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
KUBERNETES = {"type": "object"}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


HEAD = fields(
    ("template",),
    template=KUBERNETES,
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    headService=KUBERNETES,
    enableIngress=SWITCH,
    resources=TEXTS,
    labels=TEXTS,
)
WORKERS = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    numOfHosts=WHOLE,
    idleTimeoutSeconds=WHOLE,
    priority=WHOLE,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=KUBERNETES,
)
AUTOSCALER = fields(
    version=one_of("v1", "v2"),
    idleTimeoutSeconds=WHOLE,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    image=TEXT,
    imagePullPolicy=TEXT,
    resources=KUBERNETES,
    securityContext=KUBERNETES,
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
)
CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("token", "disabled"), secretName=TEXT),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    headServiceAnnotations=TEXTS,
    suspend=SWITCH,
)
JOB = fields(
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=WHOLE,
    activeDeadlineSeconds=WHOLE,
    preRunningDeadlineSeconds=WHOLE,
    shutdownAfterJobFinishes=SWITCH,
    ttlSecondsAfterFinished=WHOLE,
    submitterPodTemplate=KUBERNETES,
    submitterConfig=fields(backoffLimit=WHOLE),
    runtimeEnvYAML=TEXT,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    jobId=TEXT,
    rayClusterSpec=CLUSTER,
    suspend=SWITCH,
)


def whole(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The object of a kind around its spec."""
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=fields(("name",), name=TEXT, labels=TEXTS, annotations=TEXTS),
        spec=spec,
    )


SCHEMAS = {"RayCluster": whole("RayCluster", CLUSTER), "RayJob": whole("RayJob", JOB)}


def crd(kind: str) -> dict[str, Any] | None:
    """The schema of a kind's CRD in the folder that ``KUBERAY_CRDS`` names; None without."""
    folder = os.environ.get("KUBERAY_CRDS")
    for path in sorted(Path(folder).glob("*.yaml")) if folder else ():
        for found in yaml.safe_load_all(path.read_text()):
            if found and found["spec"]["names"]["kind"] == kind:
                (version,) = [each for each in found["spec"]["versions"] if each["name"] == "v1"]
                return closed(version["schema"]["openAPIV3Schema"])
    return None


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema that refuses fields it does not name, where it would drop them."""
    result = dict(schema)
    if properties := schema.get("properties"):
        result["properties"] = {name: closed(each) for name, each in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    for inner in ("items", "additionalProperties"):
        if isinstance(result.get(inner), dict):
            result[inner] = closed(result[inner])
    return result
