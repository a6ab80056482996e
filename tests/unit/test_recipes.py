"""What builds and starts distforge elsewhere names nothing that is not there.

Dockerfile, compose.yaml and the forge's workflow cannot be run by a test, so what they name is
looked for: stages, make's targets, files, commands with their options, variables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distforge.cli import COMMANDS
from distforge.config import load_config
from distforge.registry.server import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
IN_IMAGE = "/distforge/"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def compose() -> Any:
    return yaml.safe_load(read("compose.yaml"))


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: each with its words, continued lines joined."""
    text = re.sub(r"\\\n", " ", read("Dockerfile"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def made_by(script: str) -> list[str]:
    """The targets that a shell script gives to make."""
    found = []
    for command in re.split(r"&&|\|\||;|\n", script):
        words = command.split()
        while words and "=" in words[0]:  # variables
            words = words[1:]
        if words[:1] != ["make"]:
            continue
        words = words[3:] if words[1:2] == ["-C"] else words[1:]
        found += [word for word in words if "=" not in word and not word.startswith("-")]
    return found


def test_make_has_every_target_that_it_promises() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) <= targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_makes_what_there_is(workflow: Path) -> None:
    read_back = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert True in read_back  # `on`, which YAML takes for a truth value
    made = []
    for job in read_back["jobs"].values():
        assert job["runs-on"]
        assert [name for name in job.get("env", {}) if f'"{name}"' not in read("setup.py")] == []
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            made += made_by(step.get("run", ""))
    assert {"check", "test"} <= set(made) <= targets()


def test_the_local_check_makes_what_there_is() -> None:
    made = made_by(read(".ci/run"))
    assert {"check", "test"} <= set(made) <= targets()


def test_the_image_is_built_of_what_there_is() -> None:
    stages: list[str] = []
    made = []
    for name, rest in instructions():
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            assert base.startswith("debian:") or base in stages
            stages.append(stage)
        if name == "RUN":
            made += made_by(rest)
    assert set(made) == {"setup", "server"} <= targets()
    assert yaml.safe_load(dict(instructions())["ENTRYPOINT"]) == ["distforge"]
    assert stages == ["train", "registry"]


def test_the_services_fit_the_image_and_one_another() -> None:
    described = compose()
    services, volumes = described["services"], described["volumes"]
    stages = [rest.partition(" AS ")[2] for name, rest in instructions() if name == "FROM"]
    for service in services.values():
        assert ("image" in service) != ("build" in service)
        if "build" in service:
            assert service["build"]["target"] in stages
            assert (ROOT / service["build"]["context"] / "Dockerfile").is_file()
        assert set(service.get("depends_on", {})) <= set(services)
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(volumes)
        for needed in service.get("depends_on", {}):
            assert "healthcheck" in services[needed]


def test_the_registry_of_the_services_is_a_command_that_is_taken() -> None:
    service = compose()["services"]["registry"]
    default = re.compile(r"\$\{\w+:-([^}]*)\}")
    words = [default.sub(r"\1", word) for word in service["command"]]
    assert " ".join(words[:2]) in COMMANDS
    config = load_config(ServeConfig, None, words[2:])
    assert config.allowed_hosts == ("localhost", "registry")
    published = service["ports"][0].split(":")
    exposed = [rest for name, rest in instructions() if name == "EXPOSE"]
    assert {*published, *exposed} == {str(config.port)}
    kept = [volume.partition(":")[2] for volume in service["volumes"]]
    assert kept == [str(config.directory)]
    server = re.search(r"^SERVER := (.*)$", read("Makefile"), re.MULTILINE)
    assert server is not None
    assert config.python == f"{IN_IMAGE}{server[1]}/bin/python"
    workdirs = [rest for name, rest in instructions() if name == "WORKDIR"]
    assert f"{workdirs[0]}/" == IN_IMAGE


def test_the_services_set_variables_that_are_read() -> None:
    services = compose()["services"]
    own = [name for name in services["registry"]["environment"] if name.startswith("DISTFORGE_")]
    assert own
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("distforge/**/*.py"))
    assert [name for name in own if f'"{name}"' not in code] == []
    database = services["database"]["environment"]
    backend = next(word for word in services["registry"]["command"] if "--backend" in word)
    assert backend == (
        f"--backend=postgresql://{database['POSTGRES_USER']}@database/{database['POSTGRES_DB']}"
    )
    health = services["database"]["healthcheck"]["test"][1].split()
    assert health[health.index("--username") + 1] == database["POSTGRES_USER"]
    assert health[health.index("--dbname") + 1] == database["POSTGRES_DB"]
    assert database["POSTGRES_PASSWORD"] == services["registry"]["environment"]["PGPASSWORD"]
