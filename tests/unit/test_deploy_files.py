"""What `serve/rayzyme_serve/deploy` ships: accepted by those that read it, closed by default, true to the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema
from tests.support import kuberay

import rayzyme
from rayzyme.monitoring.metric_names import METRICS
from rayzyme.monitoring.metrics import exported_names
from rayzyme.settings import load_settings
from rayzyme.settings_sections import ServeSettings
from rayzyme_actors.connection import OF_OUR_RAYS

KUBERNETES = "1.31"
CLUSTER_FILES = ["cluster.yaml", "serve/rayzyme_serve/deploy/cluster-aws.yaml"]


@pytest.fixture
def deploy(repository: Path) -> Path:
    return repository / "serve" / "rayzyme_serve" / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(params=["kuberay-service.yaml", "kuberay-job.yaml"])
def resource(request: pytest.FixtureRequest, deploy: Path) -> dict[str, Any]:
    """The custom resource of each of KubeRay's files."""
    return next(document for document in documents(deploy / request.param) if document["apiVersion"] == "ray.io/v1")


@pytest.fixture(params=["serve.yaml", "kuberay-service.yaml"])
def serve_config(request: pytest.FixtureRequest, deploy: Path) -> dict[str, Any]:
    """Each configuration of Serve."""
    document = documents(deploy / request.param)[0]
    config: dict[str, Any] = yaml.safe_load(document["spec"]["serveConfigV2"]) if "spec" in document else document
    return config


def test_serve_accepts_its_configuration_and_knows_every_key(serve_config: dict[str, Any]) -> None:
    accepted = ServeDeploySchema.model_validate(serve_config)
    told = accepted.model_dump(exclude_unset=True)
    # Serve passes over keys that it does not know, so a slip is one that did not come back.
    assert _names(serve_config) <= _names(json.loads(json.dumps(told, default=str)))
    assert "host" in serve_config["http_options"], "Serve's own default is every interface"
    (deployment,) = serve_config["applications"][0]["deployments"]
    assert deployment["autoscaling_config"].keys() <= AutoscalingConfig.model_fields.keys()


def _names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(name for item in value.values() for name in _names(item))}
    return {name for item in value for name in _names(item)} if isinstance(value, list) else set()


def test_serve_finds_the_application_and_the_deployment_that_are_named(serve_config: dict[str, Any]) -> None:
    from rayzyme_serve.app import APPLICATION, OnlineEndpoint, build

    (application,) = serve_config["applications"]
    assert application["name"] == APPLICATION
    assert application["import_path"] == f"{build.__module__}:{build.__name__}"
    assert [deployment["name"] for deployment in application["deployments"]] == [OnlineEndpoint.name]


def test_the_limits_are_those_of_the_settings(serve_config: dict[str, Any]) -> None:
    (deployment,) = serve_config["applications"][0]["deployments"]
    settings = ServeSettings()
    assert deployment["max_ongoing_requests"] == settings.max_running + settings.max_followers
    assert deployment["max_queued_requests"] == settings.max_queued
    assert serve_config["http_options"]["request_timeout_s"] == settings.timeout


def test_an_update_drops_no_request(serve_config: dict[str, Any]) -> None:
    (deployment,) = serve_config["applications"][0]["deployments"]
    assert deployment["max_surge_percent"] == 100, "else old replicas stop before new ones start"
    assert deployment["graceful_shutdown_timeout_s"] >= 10
    assert deployment["autoscaling_config"]["min_replicas"] >= 1


def test_who_listens_beyond_loopback_asks_for_tokens(deploy: Path) -> None:
    """P4"""
    assert documents(deploy / "serve.yaml")[0]["http_options"]["host"] == "127.0.0.1"
    service = documents(deploy / "kuberay-service.yaml")[0]
    for pod in kuberay.pod_templates(service):
        environment = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
        assert environment["RAYZYME_SERVE__AUTH"] == "tokens"
    compose = documents(deploy / "compose.yaml")[0]["services"]
    assert compose["rayzyme"]["environment"]["RAYZYME_SERVE__AUTH"] == "tokens"
    for service in compose.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_kuberay_knows_every_field(resource: dict[str, Any]) -> None:
    jsonschema.validate(resource, kuberay.SCHEMAS[resource["kind"]])


@pytest.mark.parametrize("path", [("spec",), ("spec", "*", "headGroupSpec"), ("spec", "*", "authOptions")])
def test_a_field_that_kuberay_does_not_know_is_found(resource: dict[str, Any], path: tuple[str, ...]) -> None:
    inner: Any = resource
    for name in path:
        inner = kuberay.cluster_of(resource) if name == "*" else inner[name]
    inner["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(resource, kuberay.SCHEMAS[resource["kind"]])


def test_kubernetes_accepts_the_pods_and_the_policy(deploy: Path, resource: dict[str, Any]) -> None:
    pods = list(kuberay.pod_templates(resource))
    assert len(pods) == 2
    others = [
        document for document in documents(deploy / "kuberay-service.yaml") if document["apiVersion"] != "ray.io/v1"
    ]
    assert [document["kind"] for document in others] == ["NetworkPolicy"]
    for document in (*pods, *others):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pods_have_no_rights_that_they_do_not_need(resource: dict[str, Any]) -> None:
    for pod in kuberay.pod_templates(resource):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_ray_asks_for_its_token_on_kubernetes(resource: dict[str, Any]) -> None:
    assert kuberay.cluster_of(resource)["authOptions"] == {"mode": "token"}


def test_settings_in_the_environment_exist(
    deploy: Path, resource: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = documents(deploy / "compose.yaml")[0]["services"]["rayzyme"]["environment"]
    pods = [pod["spec"]["containers"][0]["env"] for pod in kuberay.pod_templates(resource)]
    given = [(entry["name"], entry.get("value", "sqlite:///x")) for entries in pods for entry in entries]
    for name, value in [*given, *compose.items()]:
        monkeypatch.setenv(name, value)
    load_settings()


def test_all_say_the_version_of_this_code_and_the_ray_that_it_runs_on(repository: Path, deploy: Path) -> None:
    import ray

    text = "\n".join(path.read_text() for path in [repository / "cluster.yaml", *deploy.glob("*.yaml")])
    assert set(re.findall(r"rayzyme[-:](\d+\.[\d.]*\d)", text)) == {rayzyme.__version__}
    assert {*re.findall(r'rayVersion: "([\d.]+)"', text), *re.findall(r"rayproject/ray:([\d.]+)", text)} == {
        ray.__version__
    }
    for image in re.findall(r"image: (\S+)", text):
        assert re.search(r":v?\d", image), f"{image} is not pinned"


@pytest.mark.parametrize("file", CLUSTER_FILES)
def test_ray_up_accepts_the_cluster_and_its_nodes_ask_for_the_token(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = documents(repository / file)[0]
    monkeypatch.setenv("HOME", str(tmp_path))
    starts = [
        command
        for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "0.0.0.0" not in str(cluster)
    validate_config(prepare_config(cluster))


def test_every_ray_has_the_environment_of_ours(repository: Path, deploy: Path) -> None:
    wanted = {f"{name}={value}" for name, value in OF_OUR_RAYS.items()}
    assert wanted <= set((deploy / "Dockerfile").read_text().split())
    for file in CLUSTER_FILES:
        cluster = documents(repository / file)[0]
        for command in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
            assert wanted <= set(command.split()), file


def test_what_they_mount_is_beside_them(deploy: Path) -> None:
    compose = documents(deploy / "compose.yaml")[0]
    mounted = [volume.split(":")[0] for service in compose["services"].values() for volume in service["volumes"]]
    files = [name for name in mounted if name.startswith("./")]
    assert files
    assert all((deploy / name).is_file() for name in files)
    build = compose["services"]["rayzyme"]["build"]
    assert (deploy / build["context"] / build["dockerfile"]).is_file()


def test_the_dashboard_asks_only_for_metrics_that_are_published(deploy: Path) -> None:
    dashboard = json.loads((deploy / "grafana-dashboard.json").read_text())
    published = {f"ray_{name}" for metric in METRICS.values() for name in _series(metric)}
    asked = {name for expression in _expressions(dashboard) for name in re.findall(r"ray_\w+", expression)}
    assert asked <= published, asked - published
    for what in ("http_request", "http_errors", "lane_wait", "batch_size", "encode", "search", "jobs", "commit"):
        assert any(what in name for name in asked), f"nothing is shown of {what}"


def test_the_dashboard_groups_by_tags_that_the_metrics_carry(deploy: Path) -> None:
    dashboard = json.loads((deploy / "grafana-dashboard.json").read_text())
    tags = {f"ray_{name}": {*metric.tags} for metric in METRICS.values() for name in _series(metric)}
    of_ray = {"WorkerId", "NodeAddress", "le"}
    for expression in _expressions(dashboard):
        names = re.findall(r"ray_\w+", expression)
        grouped = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for tag in group.split(",")}
        chosen = {
            tag for selection in re.findall(r"\{([^}]*)\}", expression) for tag in re.findall(r"(\w+)=", selection)
        }
        for name in names:
            assert (grouped | chosen) - of_ray <= tags[name], expression


def test_no_two_panels_of_the_dashboard_lie_over_each_other(deploy: Path) -> None:
    dashboard = json.loads((deploy / "grafana-dashboard.json").read_text())
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def _series(metric: Any) -> tuple[str, ...]:
    """The names that can be asked for: of a histogram the bare one cannot."""
    names = exported_names(metric)
    return names[1:] if metric.kind == "histogram" else names[:1]


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
