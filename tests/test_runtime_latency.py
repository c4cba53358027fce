"""Models are timed in turns, and what others take of the machine is told."""

import subprocess
import sys

import numpy as np
import pytest

from runtime.timing.latency import ModelCalls, ProcessorTimes, others_share, rotations, time_interleaved


def test_models_take_turns_in_rotated_order():
    assert list(rotations(3, 4)) == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    calls: list[str] = []
    models = [
        ModelCalls(run=lambda i, n=n: calls.append(n), predict=lambda i, n=n: calls.append(n)) for n in "ab"
    ]
    samples = time_interleaved(models, rounds=2, burst_s=1e-6)
    turns = [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]
    assert turns == ["a", "b", "a", "b", "a"]  # set-up a b; round one a b; round two b a
    assert [len(burst) for burst in samples[0].end_to_end_ms] == [3, 3]


def test_load_of_others_by_hand():
    before, after = ProcessorTimes(10.0, 100.0, 1.0), ProcessorTimes(18.0, 120.0, 6.0)
    assert others_share(before, after) == pytest.approx(3 / 20)
    assert others_share(None, after) is None


def test_child_does_not_inherit_its_parents_peak_memory():
    big = np.ones(40_000_000)  # 305 MiB in this process
    code = "from runtime.timing.latency import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert float(child.stdout) < 250 < big.nbytes / 2**20
