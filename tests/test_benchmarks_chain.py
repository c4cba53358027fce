"""The chain's commands, and what becomes of them when the INT8 guard refuses a model."""

import importlib

import pytest

from benchmarks.chain import ChainSettings, stages, without
from segcore.command import Settings, parse_settings

SOURCES = {
    "teacher.train": "teacher.settings",
    "export": "export.command",
    "benchmarks": "benchmarks.report.run",
}


@pytest.fixture
def chain(tmp_path):
    return stages(ChainSettings(data="phantom:cxr", out=tmp_path / "chain", controls=True))


def parsed(stage):
    module, *words = stage.words
    source = importlib.import_module(SOURCES.get(module, module))
    own = [v for v in vars(source).values() if isinstance(v, type) and issubclass(v, Settings)]
    settings = next(v for v in own if v.__module__ == source.__name__)
    return parse_settings(settings, f"python -m {module}", list(words))


def test_every_command_is_taken(chain):
    assert [parsed(stage).out for stage in chain] == [stage.out for stage in chain]


def test_only_int8_may_be_refused(chain):
    guarded = [stage for stage in chain if stage.guarded]
    assert len(guarded) == 5
    assert all(parsed(stage).precision == "int8" for stage in guarded)


def test_a_refused_bundle_is_left_out_and_nothing_else(chain):
    report = next(stage for stage in chain if stage.out.name == "report")
    refused = next(stage.out for stage in chain if stage.out.name == "student-int8")
    before, after = parsed(report), parsed(without(report, [refused]))
    assert refused in before.bundle
    assert after == before.model_copy(update={"bundle": tuple(b for b in before.bundle if b != refused)})
    assert without(report, []) == report
