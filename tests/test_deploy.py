"""The Kubernetes manifests: by Kubernetes' schemas, KubeRay's, Ray's own reading of them, and our rules."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft7Validator
from ray._private import ray_constants
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.utils import parse_quantity

from dfdet.cli import parse
from dfdet.config import Data
from ray_jobs.growth import GROWS_TO, growth
from tests.kuberay import SCHEMAS, crd

ROOT = Path(__file__).parents[1]
KUBERNETES = kubernetes_validate.latest_version()


def documents(name):
    return {each["kind"]: each for each in yaml.safe_load_all((ROOT / "deploy" / name).read_text())}


@pytest.fixture(scope="module")
def cluster():
    return documents("raycluster.yaml")["RayCluster"]


@pytest.fixture(scope="module")
def job():
    return documents("rayjob.yaml")["RayJob"]


@pytest.fixture(scope="module")
def common():
    return documents("common.yaml")


@pytest.fixture(scope="module")
def groups(cluster):
    spec = cluster["spec"]
    return {"head": spec["headGroupSpec"]} | {each["groupName"]: each for each in spec["workerGroupSpecs"]}


@pytest.fixture(scope="module")
def pods(groups, job):
    """Every pod that there may be, by name."""
    found = {name: group["template"] for name, group in groups.items()}
    return found | {"submitter": job["spec"]["submitterPodTemplate"]}


@pytest.fixture(scope="module")
def nodes(groups):
    """The pods that are nodes of Ray."""
    return {name: group["template"]["spec"] for name, group in groups.items()}


def container(spec):
    (only,) = spec["containers"]
    return only


def environment(spec):
    return {each["name"]: each["value"] for each in container(spec)["env"]}


def volume_at(spec, path):
    (name,) = [each["name"] for each in container(spec)["volumeMounts"] if each["mountPath"] == path]
    (volume,) = [each for each in spec["volumes"] if each["name"] == name]
    return volume


# ---- schemas


@pytest.mark.parametrize("name", ["PersistentVolumeClaim", "NetworkPolicy"])
def test_kubernetes_takes_what_is_common(common, name):
    kubernetes_validate.validate(common[name], KUBERNETES, strict=True)


def test_kubernetes_takes_every_pod(pods):
    for template in pods.values():
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True)


def test_kubernetes_refuses_what_it_does_not_know(pods):
    wrong = copy.deepcopy(pods["gpu"])
    container(wrong["spec"])["resourses"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="resourses"):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **wrong}, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_kuberay_takes_it(kind, cluster, job):
    errors = Draft7Validator(SCHEMAS[kind]).iter_errors({"RayCluster": cluster, "RayJob": job}[kind])
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_the_operators_crd_takes_it(kind, cluster, job):
    schema = crd(kind)
    if schema is None:
        pytest.skip("KUBERAY_CRDS names no folder with the operator's CRDs")
    errors = Draft7Validator(schema).iter_errors({"RayCluster": cluster, "RayJob": job}[kind])
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_rays_autoscaler_reads_the_nodes_that_we_mean(cluster):
    placed = cluster | {"metadata": cluster["metadata"] | {"namespace": "default"}}
    config = _derive_autoscaling_config_from_ray_cr(placed)
    types = config["available_node_types"]
    assert config["idle_timeout_minutes"] == 10
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["gpu"]["min_workers"], types["gpu"]["resources"]["GPU"]) == (0, 4)
    assert types["cpu"]["min_workers"] == 0
    assert "GPU" not in types["cpu"]["resources"]


# ---- one cluster


def test_the_jobs_cluster_is_the_cluster_with_its_gpus_there(cluster, job):
    ours, theirs = copy.deepcopy(cluster["spec"]), copy.deepcopy(job["spec"]["rayClusterSpec"])
    counts = ("replicas", "minReplicas", "maxReplicas")
    (gpu,) = [each for each in theirs["workerGroupSpecs"] if each["groupName"] == "gpu"]
    assert len({gpu.pop(count) for count in counts}) == 1
    for group in ours["workerGroupSpecs"]:
        if group["groupName"] == "gpu":
            group.update(dict.fromkeys(counts))
            [group.pop(count) for count in counts]
    for spec in (ours, theirs):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            only = container(group["template"]["spec"])
            only["env"] = [each for each in only["env"] if each["name"] != GROWS_TO]
    assert theirs == ours


def test_ray_is_that_of_the_image(cluster, pods):
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == version
    assert len({container(template["spec"])["image"] for template in pods.values()}) == 1


# ---- security


def test_no_pod_is_root_or_may_become_it(pods, cluster):
    containers = [container(template["spec"]) for template in pods.values()]
    for confined in [*containers, cluster["spec"]["autoscalerOptions"]]:
        assert confined["securityContext"]["allowPrivilegeEscalation"] is False
        assert confined["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for template in pods.values():
        context = template["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1000)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & template["spec"].keys()
        assert all("hostPath" not in volume for volume in template["spec"].get("volumes", ()))


def test_nothing_is_reached_from_outside_the_cluster(cluster, common, pods, nodes):
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = common["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    selected = policy["podSelector"]["matchLabels"].items()
    assert all(selected <= template["metadata"]["labels"].items() for template in pods.values())
    within, *from_others = policy["ingress"]
    assert within == {"from": [{"podSelector": policy["podSelector"]}]}
    known = {port["containerPort"] for port in container(nodes["head"])["ports"]}
    assert all({port["port"] for port in rule["ports"]} <= known for rule in from_others)


def test_prometheus_finds_ports_that_there_are(pods, nodes):
    monitor = documents("podmonitor.yaml")["PodMonitor"]["spec"]
    ours = monitor["selector"]["matchLabels"].items() - {("ray.io/is-ray-node", "yes")}  # KubeRay's
    assert all(ours <= template["metadata"]["labels"].items() for template in pods.values())
    ports = {port["name"]: port["containerPort"] for port in container(nodes["head"])["ports"]}
    opened = {each["port"]: ports[each["port"]] for each in monitor["podMetricsEndpoints"]}
    assert opened == {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}


# ---- resources and storage


def test_pods_get_what_they_ask_for(pods):
    for template in pods.values():
        resources = container(template["spec"])["resources"]
        assert resources["requests"] == resources["limits"]


def test_all_nodes_share_a_folder_which_relative_paths_lie_in(common, nodes):
    claim = common["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for spec in nodes.values():
        shared = volume_at(spec, environment(spec)["DFDET_HOME"])
        assert shared["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("kind", ["cluster", "job"])
def test_it_says_what_it_grows_to(kind, cluster, job, monkeypatch):
    spec = cluster["spec"] if kind == "cluster" else job["spec"]["rayClusterSpec"]
    monkeypatch.setenv(GROWS_TO, environment(spec["headGroupSpec"]["template"]["spec"])[GROWS_TO])
    most = {"CPU": 0.0, "GPU": 0.0}
    for group in spec["workerGroupSpecs"]:
        requests = container(group["template"]["spec"])["resources"]["requests"]
        most["CPU"] += group["maxReplicas"] * float(requests["cpu"])
        most["GPU"] += group["maxReplicas"] * float(requests.get("nvidia.com/gpu", 0))
    assert growth() == most


def test_shared_memory_holds_rays_objects_and_nccls_buffers(groups, nodes):
    for name, spec in nodes.items():
        shm = volume_at(spec, "/dev/shm")["emptyDir"]
        objects = int(groups[name]["rayStartParams"]["object-store-memory"])
        memory = parse_quantity(container(spec)["resources"]["limits"]["memory"])
        assert shm["medium"] == "Memory"
        assert 1.5 * objects < parse_quantity(shm["sizeLimit"]) < memory


def test_the_default_shard_cache_fits_on_the_nodes_disk(nodes):
    assert Data.model_fields["cache_dir"].default.startswith("~/.cache/")
    for spec in nodes.values():
        size = parse_quantity(volume_at(spec, "/home/dfdet/.cache")["emptyDir"]["sizeLimit"])
        assert size < parse_quantity(container(spec)["resources"]["limits"]["ephemeral-storage"])
    gpu = parse_quantity(volume_at(nodes["gpu"], "/home/dfdet/.cache")["emptyDir"]["sizeLimit"])
    assert gpu > Data.model_fields["cache_gib"].default * 2**30


# ---- what is taken away, and what comes back


def test_a_pod_that_is_taken_away_has_time_for_a_checkpoint(nodes):
    name = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, name)
    for spec in nodes.values():
        assert 10 <= int(environment(spec)[name]) < spec["terminationGracePeriodSeconds"] - 10


def test_pods_with_gpus_are_let_onto_nodes_with_gpus(nodes):
    def keys(spec):
        return {each["key"] for each in spec.get("tolerations", ())}

    assert "nvidia.com/gpu" in keys(nodes["gpu"])
    assert "nvidia.com/gpu" not in keys(nodes["cpu"]) | keys(nodes["head"])


def test_a_retried_job_is_the_same_run_on_all_its_gpus(job):
    spec = job["spec"]
    python, script, *args = shlex.split(spec["entrypoint"])
    assert (python, (ROOT / script).is_file()) == ("python", True)
    config = parse(args, prog="train.py")
    (gpu,) = [each for each in spec["rayClusterSpec"]["workerGroupSpecs"] if each["groupName"] == "gpu"]
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "--run.name" in args
    assert config.run.workers == int(limits["nvidia.com/gpu"]) * gpu["minReplicas"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert "activeDeadlineSeconds" not in spec
