"""Every command that the README and the pages in docs tell a user to type is one that we take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from segcore.command import Settings, parse_settings

ROOT = Path(__file__).parents[1]
MODULES = {
    "segcore.dataset": "segcore.dataset.__main__",
    "export": "export.command",
    "benchmarks": "benchmarks.report.run",
    "teacher.train": "teacher.settings",
    "benchmarks.study": "benchmarks.study.settings",
    "demo": "demo.__main__",
}


def commands() -> list[str]:
    found = []
    for page in (
        "README.md",
        "docs/results.md",
        "docs/int8.md",
        "docs/jetson.md",
        "docs/demo.md",
        "docs/teachers.md",
    ):
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.partition("#")[0].strip() for line in lines if line.startswith("python -m ")]
    return found


def settings_of(module: str) -> type[Settings]:
    source = importlib.import_module(MODULES.get(module, module))
    own = [v for v in vars(source).values() if isinstance(v, type) and issubclass(v, Settings)]
    return next(v for v in own if v.__module__ == source.__name__)


def test_there_are_commands():
    assert len(commands()) >= 12


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_taken(command):
    without_files = re.sub(r"--config \S+", "", command)  # which an earlier command writes
    _, _, module, *words = shlex.split(without_files)
    parse_settings(settings_of(module), f"python -m {module}", words)


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()
