"""TensorRT's releases, as numbers, and which of them a piece of our code is for.

What differs between releases stands in modules of its own; each says in `SERVES` from which release on, and below
which, its names exist. `tests/test_runtime_tensorrt_api.py` holds every module to NVIDIA's bindings of those releases.
"""

from __future__ import annotations

from dataclasses import dataclass

Release = tuple[int, int]

OLDEST: Release = (8, 6)
STRONGLY_TYPED: Release = (10, 13)
"""From here on the graph's own types decide, and precision flags are deprecated; TensorRT 11 has none."""


@dataclass(frozen=True)
class Serves:
    """Releases `first` ≤ r < `below`; None is open."""

    first: Release = OLDEST
    below: Release | None = None

    def __contains__(self, release: object) -> bool:
        if not isinstance(release, tuple):
            return False
        return self.first <= release and (self.below is None or release < self.below)


def release_of(version: str) -> Release:
    """Major and minor number: "10.13.3.9" → (10, 13)."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
