"""Every command that the README and the pages in docs tell a user to type is one that we take."""

import re
import shlex
from pathlib import Path

import pytest

from segcore.command import parse_settings

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    found = []
    for page in (
        "README.md",
        "docs/results.md",
        "docs/int8.md",
        "docs/jetson.md",
        "docs/demo.md",
        "docs/teachers.md",
        "docs/augmentation.md",
        "docs/performance.md",
        "docs/security.md",
    ):
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.partition("#")[0].strip() for line in lines if line.startswith("python -m ")]
    return found


def test_there_are_commands():
    assert len(commands()) >= 12


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_taken(command, settings_of):
    without_files = re.sub(r"--config \S+", "", command)  # which an earlier command writes
    _, _, module, *words = shlex.split(without_files)
    parse_settings(settings_of(module), f"python -m {module}", words)


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()
