"""What is in deploy/ and docs/operations.md, held to what Ray Serve takes and to what the service does."""

import asyncio
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

import greenroom
from greenroom.adapters.http_settings import HttpSettings
from greenroom.adapters.settings import load_settings
from greenroom.domain.circuit import CircuitState
from greenroom.serve.app import MAX_ONGOING_REQUESTS, NAME, build
from greenroom.serve.http import health
from greenroom.serve.http.metrics import registry_of

TOP = Path(greenroom.__file__).parent.parent
DEPLOY = TOP / "deploy"
DATA_DIR = "/data"
RESOURCE = "greenroom_data"
CLOSED_PORTS = (6379, 8404, 9101, 10001, 30000, 31000)

pytestmark = [
    pytest.mark.skipif(not (TOP / "pyproject.toml").exists(), reason="only in a checkout"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments:DeprecationWarning"),  # ray.serve's own
]


@pytest.fixture(scope="module")
def schema() -> Any:
    return importlib.import_module("ray.serve.schema")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "serve.yaml").read_text())


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """By their kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "rayservice.yaml").read_text())}


@pytest.fixture(scope="module")
def cluster_config(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return manifests["RayService"]["spec"]["rayClusterConfig"]


@pytest.fixture(scope="module")
def templates(cluster_config: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the pods: the head's, then the workers'."""
    groups = [cluster_config["headGroupSpec"], *cluster_config["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def guide() -> str:
    return (TOP / "docs" / "operations.md").read_text()


def test_the_rayservice_deploys_what_the_serve_config_says(
    config: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    assert config == yaml.safe_load(manifests["RayService"]["spec"]["serveConfigV2"])


def test_serve_takes_the_config(config: dict[str, Any], schema: Any) -> None:
    taken = schema.ServeDeploySchema.model_validate(config)

    (application,) = taken.applications
    assert application.deployments[0].is_autoscaling_configured()
    assert config["applications"][0]["args"] == application.args


def test_no_key_of_the_config_is_one_that_serve_passes_over(config: dict[str, Any], schema: Any) -> None:
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    autoscaling: Any = importlib.import_module("ray.serve.config").AutoscalingConfig

    for model, given in (
        (schema.ServeDeploySchema, config),
        (schema.HTTPOptionsSchema, config["http_options"]),
        (schema.ServeApplicationSchema, application),
        (schema.DeploymentSchema, deployment),
        (schema.LoggingConfig, deployment["logging_config"]),
        (schema.RayActorOptionsSchema, deployment["ray_actor_options"]),
        (autoscaling, deployment["autoscaling_config"]),
    ):
        assert set(given) <= set(model.model_fields), model.__name__
    autoscaling(**deployment["autoscaling_config"])


def test_the_names_are_those_of_the_app(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")

    assert build is getattr(importlib.import_module(module), attribute)
    assert [NAME, NAME] == [application["name"], application["deployments"][0]["name"]]


@pytest.mark.usefixtures("no_config_file")
def test_the_arguments_are_settings(config: dict[str, Any]) -> None:
    settings = load_settings(config["applications"][0]["args"], {})

    assert DATA_DIR == settings.data_dir
    assert "0.0.0.0" == settings.http.host, "metrics want a key where others reach them"
    assert config["http_options"]["port"] == settings.http.port


@pytest.mark.usefixtures("no_config_file")
def test_a_replica_may_hold_as_many_requests_as_streams_and_more(config: dict[str, Any]) -> None:
    (deployment,) = config["applications"][0]["deployments"]
    settings = load_settings(config["applications"][0]["args"], {})

    assert MAX_ONGOING_REQUESTS == deployment["max_ongoing_requests"]
    assert settings.http.max_streams < deployment["max_ongoing_requests"]
    assert deployment["autoscaling_config"]["target_ongoing_requests"] < settings.http.max_streams


def test_replicas_run_only_where_the_volume_is(
    config: dict[str, Any], cluster_config: dict[str, Any], manifests: dict[str, dict[str, Any]]
) -> None:
    head, workers = cluster_config["headGroupSpec"], cluster_config["workerGroupSpecs"]
    (deployment,) = config["applications"][0]["deployments"]
    wanted = deployment["ray_actor_options"]["resources"]
    offered = json.loads(json.loads(head["rayStartParams"]["resources"]))

    assert [RESOURCE] == list(wanted)
    assert wanted[RESOURCE] * deployment["autoscaling_config"]["max_replicas"] <= offered[RESOURCE]
    assert not [group for group in workers if "resources" in group["rayStartParams"]]
    pod = head["template"]["spec"]
    (volume,) = (one for one in pod["volumes"] if "persistentVolumeClaim" in one)
    claim = manifests["PersistentVolumeClaim"]["metadata"]["name"]
    assert claim == volume["persistentVolumeClaim"]["claimName"]
    assert {"name": volume["name"], "mountPath": DATA_DIR} in pod["containers"][0]["volumeMounts"]


def test_a_second_cluster_never_opens_the_data_dir(manifests: dict[str, dict[str, Any]]) -> None:
    assert {"type": "None"} == manifests["RayService"]["spec"]["upgradeStrategy"]


def test_every_node_has_the_same_image_and_environment(templates: list[dict[str, Any]], guide: str) -> None:
    containers = [template["spec"]["containers"][0] for template in templates]
    environment = {one["name"]: one["value"] for one in containers[0]["env"]}
    constants: Any = importlib.import_module("ray.serve._private.constants")
    known = Path(constants.__file__).read_text()

    assert {"1"} == {environment[f"RAY_SERVE_{name}"] for name in ("ENABLE_HA_PROXY", "THROUGHPUT_OPTIMIZED")}
    assert [] == [name for name in environment if f'"{name}"' not in known]
    for name in ("image", "env", "envFrom"):
        assert all(container[name] == containers[0][name] for container in containers), name
    assert containers[0]["image"].endswith(f":{version('greenroom')}")
    assert set(re.findall(r"RAY_SERVE_HAPROXY_\w+", guide)) <= set(re.findall(r"RAY_SERVE_HAPROXY_\w+", known))


def test_the_version_of_ray_is_the_one_that_is_installed(cluster_config: dict[str, Any]) -> None:
    assert version("ray") == cluster_config["rayVersion"]
    assert {"mode": "token"} == cluster_config["authOptions"]


def test_no_pod_runs_as_root_or_may_ask_kubernetes(templates: list[dict[str, Any]], dockerfile: str) -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)
    for template in templates:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert int(user) == pod["securityContext"]["runAsUser"] > 0
        assert not pod["automountServiceAccountToken"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def test_pods_have_probes_of_their_own(templates: list[dict[str, Any]]) -> None:
    for template in templates:
        container = template["spec"]["containers"][0]
        assert {"httpGet"} <= {*container["readinessProbe"]} & {*container["livenessProbe"]}


def test_the_network_policy_opens_the_ports_of_ray_and_of_the_proxy_to_the_nodes_alone(
    manifests: dict[str, dict[str, Any]], templates: list[dict[str, Any]]
) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    nodes = policy["podSelector"]["matchLabels"]
    among_themselves, *others = policy["ingress"]

    assert ["Ingress"] == policy["policyTypes"]
    assert all(nodes.items() <= template["metadata"]["labels"].items() for template in templates)
    assert {"from": [{"podSelector": {"matchLabels": nodes}}]} == among_themselves
    opened = {port["port"] for rule in others for port in rule["ports"]}
    assert set() == opened & set(CLOSED_PORTS)


def test_the_image_serves_and_looks_after_itself(dockerfile: str) -> None:
    paths = {getattr(route, "path", None) for route in health.router.routes}
    (asked,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", dockerfile)
    commands = [json.loads(line.removeprefix("CMD ")) for line in dockerfile.splitlines() if line.startswith("CMD ")]

    assert asked in paths
    assert [["greenroom", "serve", "--host", "0.0.0.0", "--data-dir", DATA_DIR]] == commands
    assert f"GREENROOM_DATA_DIR={DATA_DIR}" in dockerfile


def test_the_image_copies_what_there_is(dockerfile: str) -> None:
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--" not in line]

    assert [] == [name for names in copied for name in names if not (TOP / name).exists()]


def test_the_guide_names_every_setting_of_the_service(guide: str) -> None:
    table = guide.partition("\n## Limits")[2].partition("\n## ")[0].partition("| Elsewhere")[0]

    named = {
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }

    assert set(HttpSettings.model_fields) == named


class _Runtime:
    """One with one of everything."""

    async def astats(self) -> Any:
        return SimpleNamespace(actors=[{"kind": "Directory"}], events=1, bytes=1)

    async def astatus_counts(self) -> dict[str, dict[str, int]]:
        return {"sessions": {"active": 1}, "runs": {"completed": 1}}

    async def aaccounts(self) -> dict[str, Any]:
        return {"claude": SimpleNamespace(state=CircuitState.CLOSED, under_way=0, waiting=0)}

    async def abudgets(self) -> dict[str, Any]:
        return {"runtime": SimpleNamespace(spent_usd=1.0, options=SimpleNamespace(max_cost_usd=2.0))}


def _samples() -> Iterator[tuple[str, frozenset[str]]]:
    """Names and labels of what the service shows."""
    for family in asyncio.run(registry_of(cast("Any", _Runtime()))).collect():
        for sample in family.samples:
            yield sample.name, frozenset(sample.labels)


def test_the_guide_names_every_metric_with_its_labels(guide: str) -> None:
    table = guide.partition("| Metric |")[2].partition("\n\n")[0]

    found: list[tuple[str, str]] = re.findall(r"`(greenroom_\w+)(?:\{([\w,]+)\})?`", table)
    named = {(name, frozenset(labels.split(",") if labels else ())) for name, labels in found}

    assert set(_samples()) == named


def test_links_of_the_guide_lead_somewhere(guide: str) -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", guide, re.M)
    }
    links = [link for link in re.findall(r"\]\(([^)]+)\)", guide) if not link.startswith("https:")]

    assert "ag-ui" in anchors, "the README refers to it"
    for link in links:
        path, _, anchor = link.partition("#")
        if path:
            assert (TOP / "docs" / path).exists(), link
        else:
            assert anchor in anchors, link


@pytest.mark.usefixtures("no_config_file")
def test_configurations_in_the_guide_are_settings(guide: str) -> None:
    blocks = re.findall(r"```toml\n(.+?)```", guide, re.DOTALL)

    assert blocks
    for block in blocks:
        load_settings(tomllib.loads(block), {})
