"""The chain's commands, and what becomes of them when the INT8 guard refuses a model."""

import pytest

from benchmarks.chain import ChainSettings, stages, without
from segcore.command import parse_settings


@pytest.fixture
def chain(tmp_path):
    return stages(ChainSettings(data="phantom:cxr", out=tmp_path / "chain", controls=True))


@pytest.fixture
def parsed(settings_of):
    def parse(stage):
        module, *words = stage.words
        return parse_settings(settings_of(module), f"python -m {module}", list(words))

    return parse


def test_every_command_is_taken(chain, parsed):
    assert [parsed(stage).out for stage in chain] == [stage.out for stage in chain]


def test_only_int8_may_be_refused(chain, parsed):
    guarded = [stage for stage in chain if stage.guarded]
    assert len(guarded) == 5
    assert all(parsed(stage).precision == "int8" for stage in guarded)


def test_a_refused_bundle_is_left_out_and_nothing_else(chain, parsed):
    report = next(stage for stage in chain if stage.out.name == "report")
    refused = next(stage.out for stage in chain if stage.out.name == "student-int8")
    before, after = parsed(report), parsed(without(report, [refused]))
    assert refused in before.bundle
    assert after == before.model_copy(update={"bundle": tuple(b for b in before.bundle if b != refused)})
    assert without(report, []) == report
