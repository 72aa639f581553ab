"""What can be said of the container recipes without building them: their files exist and they agree."""

import re
import subprocess
import tomllib

from repository import REPO

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


def test_the_script_is_bash_and_installs_the_extra() -> None:
    script = REPO / "containers/install.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert '".[gpu]"' in script.read_text() and "flash-attn" in (REPO / "pyproject.toml").read_text()
    check = re.search(r"<<'CHECK'\n(.*?)\nCHECK\n", script.read_text(), re.S)[1]
    compile(check, "install.sh", "exec")
