"""What can be said of the container recipes without building them: linters find nothing, their files exist and they agree."""

import platform
import re
import subprocess
import tomllib

import pytest
from repository import ENVIRONMENT, REPO

DOCKER, APPTAINER = (REPO / "containers/Dockerfile").read_text(), (REPO / "containers/entropy_asr.def").read_text()


def packages(recipe: str) -> list[str]:
    return re.search(r"apt-get install --yes --no-install-recommends ([\w\d +-]+)", recipe)[1].split()


def test_both_recipes_start_from_the_same_image_and_packages() -> None:
    assert re.search(r"^ARG BASE=(\S+)$", DOCKER, re.M)[1] == re.search(r"^From: (\S+)$", APPTAINER, re.M)[1]
    assert packages(DOCKER) == packages(APPTAINER)


def test_what_they_copy_exists_and_is_all_that_the_package_needs() -> None:
    copied = {name for words in re.findall(r"^COPY (.+) \S+$", DOCKER, re.M) for name in words.split()}
    files = re.search(r"%files\n(.*?)\n\n", APPTAINER, re.S)[1]
    assert copied == {line.split()[0] for line in files.splitlines()}
    assert all((REPO / name).exists() for name in copied)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "constraints.txt", "src"} <= copied


def lint(recipe: str, *command: str) -> list[str]:
    """What a linter says of a recipe, without colours, a finding a line."""
    done = subprocess.run([*command, "-"], input=recipe, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return done.stdout.splitlines()


def scripts() -> dict[str, str]:
    """Every shell script of the recipes; Apptainer runs its sections by sh."""
    sections = re.findall(r"^%(post|environment|test)\n(.*?)(?=^%|\Z)", APPTAINER, re.M | re.S)
    found = {name: "#!/bin/sh\n" + text for name, text in sections}
    return found | {"install.sh": (REPO / "containers/install.sh").read_text()}


linted = pytest.mark.skipif(platform.machine() != "x86_64", reason="the linters have no wheel for this machine")


@linted
def test_the_linters_find_nothing() -> None:
    assert lint(DOCKER, "hadolint", "--no-color") == []
    assert sorted(scripts()) == ["environment", "install.sh", "post", "test"]
    for text in scripts().values():
        assert lint(text, "shellcheck", "--format=gcc") == []


@linted
@pytest.mark.parametrize(
    ("wrong", "found"), [("RUN cd /opt && sudo ls", "DL3004"), ("RUN ls $HOME/*/x | xargs rm", "SC2086"), ("ADD x /x", "DL3020")]
)
def test_the_linters_would_find_a_mistake(wrong: str, found: str) -> None:
    assert any(found in line for line in lint(f"{DOCKER}{wrong}\n", "hadolint", "--no-color"))


def test_the_script_installs_the_extra() -> None:
    script = REPO / "containers/install.sh"
    assert '".[gpu]"' in script.read_text() and "flash-attn" in (REPO / "pyproject.toml").read_text()
    check = re.search(r"<<'CHECK'\n(.*?)\nCHECK\n", script.read_text(), re.S)[1]
    compile(check, "install.sh", "exec")
