"""How the images to be labelled are divided: among processes, into shards, and into batches."""

from __future__ import annotations

from collections.abc import Sequence

from segcore.case import Case, volumes_of

Batch = tuple[Case, ...]


def label_parts(
    cases: Sequence[Case], *, rank: int, processes: int, shard_images: int, batch_size: int, by_volume: bool
) -> list[list[Batch]]:
    """A process's shards, each a list of batches.

    Args:
        cases: of all processes.
        rank: of this process.
        processes: how many there are.
        shard_images: images a shard; by volume a shard ends with the volume that fills it.
        batch_size: images a batch, unless `by_volume`.
        by_volume: a batch is a whole volume, in the order of its slices, for a teacher that remembers neighbours.
    """
    if not by_volume:
        mine = tuple(cases[rank::processes])
        shards = [mine[i : i + shard_images] for i in range(0, len(mine), shard_images)]
        return [[s[i : i + batch_size] for i in range(0, len(s), batch_size)] for s in shards]
    parts: list[list[Batch]] = [[]]
    for places in volumes_of(cases)[rank::processes]:
        if sum(map(len, parts[-1])) >= shard_images:
            parts.append([])
        parts[-1].append(tuple(cases[i] for i in places))
    return [part for part in parts if part]
