"""The cluster launcher's file, by Ray's own schema, AWS's own request model and our own rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_jobs.growth import GROWS_TO, growth

ROOT = Path(__file__).parents[1]
OF_AUTOSCALING = rf"RAY_enable_autoscaler_v2=1 |{GROWS_TO}=\S+ "


@pytest.fixture(scope="module")
def raw():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(raw):
    config = prepare_config(yaml.safe_load(yaml.safe_dump(raw)))
    validate_config(config)
    return config


def test_ray_takes_it(prepared):
    assert prepared["head_node_type"] == "head"
    assert prepared["max_workers"] == 12


def test_ray_refuses_what_it_does_not_know(raw):
    with pytest.raises(Exception, match="initial_workers"):
        validate_config(prepare_config({**raw, "initial_workers": 2}))


def test_aws_takes_every_node(raw):
    model = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in raw["available_node_types"].items():
        request = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, model)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    wrong = ParamValidator().validate({"InstanceTyp": "x", "MinCount": 1, "MaxCount": 1}, model)
    assert wrong.has_errors()


def test_nothing_but_ssh_is_open(raw):
    rules = raw["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    start = " ".join(raw["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start


def test_nothing_is_scheduled_on_the_head(raw):
    assert raw["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_gpu_workers_come_from_nothing_and_spot_first(raw):
    nodes = raw["available_node_types"]
    gpus = {name: node for name, node in nodes.items() if node["resources"].get("GPU")}
    assert all(node["min_workers"] == 0 and node["resources"]["GPU"] > 1 for node in gpus.values())
    spot = {name for name, node in gpus.items() if "InstanceMarketOptions" in node["node_config"]}
    assert 0 < len(spot) < len(gpus)
    assert min(gpus[name]["priority"] for name in spot) > max(
        gpus[name]["priority"] for name in gpus.keys() - spot
    )
    assert "RAY_enable_autoscaler_v2=1" in " ".join(raw["head_start_ray_commands"])  # v1 knows no priority


def test_workers_fit_under_the_bound(raw):
    workers = [node for name, node in raw["available_node_types"].items() if name != raw["head_node_type"]]
    assert sum(node["max_workers"] for node in workers) == raw["max_workers"]


def test_every_node_installs_exactly_the_constraints(raw):
    install = [command for command in raw["setup_commands"] if "uv pip install" in command]
    assert len(install) == 1
    assert "--constraint constraints.txt" in install[0]
    for path in raw["file_mounts"].values():
        assert (ROOT / path).is_file()
    extra = re.search(r"--extra (\w+)", install[0])
    assert extra
    assert re.search(rf"^{extra[1]} = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_head_has_what_its_autoscaler_imports(raw):
    assert raw["head_setup_commands"][0].split()[-1] == "boto3"
    assert "--constraint ~/environment/constraints.txt" in raw["head_setup_commands"][0]


def test_relative_paths_of_jobs_lie_where_all_nodes_see_them(raw):
    starts = [raw["head_start_ray_commands"][-1], raw["worker_start_ray_commands"][1]]
    assert all("DFDET_HOME=/shared ray start" in re.sub(OF_AUTOSCALING, "", start) for start in starts)


def test_disks_of_all_nodes_are_encrypted_and_metadata_needs_a_token(raw):
    for node in raw["available_node_types"].values():
        config = node["node_config"]
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])
        assert config["MetadataOptions"]["HttpTokens"] == "required"


# ---- the same on Google Cloud and on machines of one's own


def variant(name):
    return yaml.safe_load((ROOT / "deploy" / name).read_text())


@pytest.mark.parametrize("name", ["cluster-gcp.yaml", "cluster-onprem.yaml"])
def test_ray_takes_the_variants(name):
    config = prepare_config(variant(name))
    validate_config(config)
    assert config["max_workers"] == {"cluster-gcp.yaml": 12, "cluster-onprem.yaml": 2}[name]


def test_google_has_the_nodes_of_aws(raw):
    gcp = variant("cluster-gcp.yaml")
    same = ("max_workers", "upscaling_speed", "idle_timeout_minutes", "head_node_type")
    assert {key: gcp[key] for key in same} == {key: raw[key] for key in same}
    kept = ("min_workers", "max_workers", "priority", "resources")
    for name, node in raw["available_node_types"].items():
        theirs = gcp["available_node_types"][name]
        assert {key: theirs.get(key) for key in kept} == {key: node.get(key) for key in kept}
        spot = theirs["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"
        assert spot == name.endswith("spot")


@pytest.mark.parametrize("name", ["cluster-gcp.yaml", "cluster-onprem.yaml"])
def test_variants_make_the_same_environment_and_start_ray_alike(name, raw):
    def commands(each):
        found = [*each["setup_commands"][-3:], *each["head_start_ray_commands"]]
        return [re.sub(rf"--extra \w+ |{OF_AUTOSCALING}", "", command) for command in found]

    config = variant(name)
    assert commands(config) == commands(raw)
    assert all((ROOT / path).is_file() for path in config["file_mounts"].values())


def test_spot_nodes_are_watched_for_less_than_their_notice(raw):
    for config, cloud, notice_s in ((raw, "aws", 120), (variant("cluster-gcp.yaml"), "gcp", 30)):
        (seconds,) = re.findall(rf"spot\.sh {cloud} (\d+) ", config["worker_start_ray_commands"][-1])
        assert int(seconds) < notice_s


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/cluster-gcp.yaml"])
def test_the_cluster_says_what_it_grows_to(name, monkeypatch):
    config = yaml.safe_load((ROOT / name).read_text())
    start = " ".join(config["head_start_ray_commands"])
    monkeypatch.setenv(GROWS_TO, re.search(rf"{GROWS_TO}=(\S+)", start)[1])
    nodes = config["available_node_types"].values()
    most = {
        kind: sum(node.get("max_workers", 0) * node["resources"].get(kind, 0) for node in nodes)
        for kind in ("CPU", "GPU")
    }
    assert growth() == most
