"""The manifests are what Kubernetes takes, and agree with the server that they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import latest_version
from sqlalchemy import make_url

from saeclamp_server.api.access import PUBLIC
from saeclamp_server.cli.args import parse_args
from saeclamp_server.startup.options import ServeOptions

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
SAECLAMP, POOL = FOLDER / "saeclamp.yaml", FOLDER / "inferencepool.yaml"
PORT = {
    "type": "object",
    "required": ["number"],
    "additionalProperties": False,
    "properties": {"number": {"type": "integer"}},
}
POOL_SCHEMA = {
    "type": "object",
    "required": ["selector", "targetPorts", "endpointPickerRef"],
    "additionalProperties": False,
    "properties": {
        "selector": {
            "type": "object",
            "required": ["matchLabels"],
            "additionalProperties": False,
            "properties": {"matchLabels": {"type": "object", "additionalProperties": {"type": "string"}}},
        },
        "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": PORT},
        "endpointPickerRef": {
            "type": "object",
            "required": ["name", "port"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "port": PORT,
                "failureMode": {"enum": ["FailOpen", "FailClose"]},
            },
        },
    },
}
"""`spec` of an InferencePool v1 (inference.networking.k8s.io), with what may be left out left out."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def named(kind: str, name: str = "saeclamp") -> Any:
    (found,) = (one for one in documents(SAECLAMP) if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


@pytest.fixture
def pod() -> Any:
    return named("Deployment")["spec"]["template"]


@pytest.fixture
def container(pod: Any) -> Any:
    (one,) = pod["spec"]["containers"]
    return one


@pytest.mark.parametrize("one", documents(SAECLAMP), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_what_is_applied_has_the_published_schema(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, latest_version(), strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    deployment = named("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, latest_version(), strict=True)


def test_the_pool_has_the_published_schema_and_chooses_these_pods(pod: Any, container: Any) -> None:
    (pool,) = documents(POOL)
    assert (pool["apiVersion"], pool["kind"]) == ("inference.networking.k8s.io/v1", "InferencePool")
    jsonschema.validate(pool["spec"], POOL_SCHEMA)
    labels = pod["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == [ports["http"]]
    assert f"--model-server-metrics-port={ports['metrics']}" in POOL.read_text()
    assert labels["llm-d.ai/engine-type"] == "vllm"


def options_of(container: Any) -> ServeOptions:
    filled = [re.sub(r"\$\((\w+)\)", r"\1", argument) for argument in container["args"]]
    options = parse_args(filled)
    assert isinstance(options, ServeOptions)
    return options


def test_the_server_takes_its_arguments_and_is_one_of_a_fleet(container: Any) -> None:
    options = options_of(container)
    assert options.fleet
    assert options.replica == "POD_NAME"
    assert options.variants is not None
    assert options.variants.startswith("postgresql+psycopg://")
    assert f"--port={container['ports'][0]['containerPort']}" in options.vllm_argv
    assert "--host=0.0.0.0" in options.vllm_argv
    used = {name for argument in container["args"] for name in re.findall(r"\$\((\w+)\)", argument)}
    assert used < {variable["name"] for variable in container["env"]}


def test_metrics_without_a_key_are_where_prometheus_looks_and_no_service_leads(pod: Any, container: Any) -> None:
    port = options_of(container).metrics_port
    assert {"name": "metrics", "containerPort": port} in container["ports"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert [one["targetPort"] for one in named("Service")["spec"]["ports"]] == ["http"]


def test_no_list_of_processes_shows_the_database_s_password(container: Any) -> None:
    url = make_url(options_of(container).variants or "")
    assert (url.username, url.password) == ("saeclamp", None)
    assert "PGPASSWORD" in {variable["name"] for variable in container["env"]}


def test_no_volume_hides_the_model_that_the_image_has(container: Any) -> None:
    for mount in container["volumeMounts"]:
        assert not "/home/saeclamp/.cache/saeclamp/models".startswith(mount["mountPath"])


def test_all_policies_are_of_these_pods(pod: Any) -> None:
    labels = pod["metadata"]["labels"]
    database = named("StatefulSet", "saeclamp-database")["spec"]["template"]["metadata"]["labels"]
    own = named("NetworkPolicy")["spec"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    open_to_all = [rule["ports"] for rule in own["ingress"] if "from" not in rule]
    assert open_to_all == [[{"port": 8000}]], "metrics need no key, so not everybody reaches them"
    policy = named("NetworkPolicy", "saeclamp-database")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= database.items()
    assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


def test_a_pod_is_killed_after_its_answers_have_had_their_time(pod: Any, container: Any) -> None:
    sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep + options_of(container).drain_s + 20


def test_probes_need_no_key(container: Any) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in PUBLIC
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_pods_may_do_no_more_than_they_must() -> None:
    for owner in (named("Deployment"), named("StatefulSet", "saeclamp-database")):
        pod = owner["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_slow_start_is_no_failed_rollout(container: Any) -> None:
    probe = container["startupProbe"]
    assert named("Deployment")["spec"]["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def test_services_find_their_pods() -> None:
    for service, owner in (("saeclamp", "Deployment"), ("saeclamp-database", "StatefulSet")):
        chosen = named("Service", service)["spec"]["selector"]
        assert chosen.items() <= named(owner, service)["spec"]["template"]["metadata"]["labels"].items()
