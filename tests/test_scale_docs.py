"""docs/scale: the manifests are what KubeRay and `ray up` take, and name the command and keys that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from builder.cli.main import _parser
from builder.recipe import EngineSettings

yaml: Any = pytest.importorskip("yaml")
DOCS = Path(__file__).parent.parent / "docs"


def load(name: str) -> Any:
    return yaml.safe_load((DOCS / "scale" / name).read_text(encoding="utf-8"))


def pods() -> list[Any]:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_ray_job_has_what_kuberay_requires() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["generateName"] or job["metadata"]["name"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["rayClusterSpec"]["rayVersion"]
    for group in pods():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["name"] and container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert all(isinstance(variable["value"], str) for variable in container["env"])
    for group in pods()[1:]:
        assert group["groupName"] and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_every_machine_has_the_work_directory_at_the_same_path() -> None:
    containers = [container for group in pods() for container in group["template"]["spec"]["containers"]]
    assert {mount["mountPath"] for container in containers for mount in container["volumeMounts"]} == {"/shared"}
    assert all("mount" in command and "/shared" in command for command in load("cluster.yaml")["setup_commands"][1:])


def test_the_ray_version_is_the_one_that_is_tested() -> None:
    pinned = (DOCS.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={load('rayjob.yaml')['spec']['rayClusterSpec']['rayVersion']}" in pinned


def test_the_command_is_one_that_sqid_takes() -> None:
    program, *words = shlex.split(load("rayjob.yaml")["spec"]["entrypoint"])
    args = _parser().parse_args(words)
    assert (program, args.engine, args.ray_address, str(args.work)) == ("sqid", "ray", "auto", "/shared/build")


def test_the_cluster_file_has_what_ray_up_requires() -> None:
    cluster = load("cluster.yaml")
    assert {"cluster_name", "provider", "auth", "available_node_types", "head_node_type"} <= set(cluster)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    for kind in cluster["available_node_types"].values():
        assert kind["resources"] and kind["node_config"]


def test_the_cluster_file_passes_the_schema_of_ray() -> None:
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    schema = (Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8")
    jsonschema.validate(load("cluster.yaml"), json.loads(schema))


def test_the_page_names_every_setting() -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8")
    unnamed = [name for name in EngineSettings.model_fields if not re.search(rf"`(\[engine\] )?{name}`", page)]
    assert unnamed == []
