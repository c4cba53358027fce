"""Separate parts of a mask, of one slice or of many, and holes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """A mask as runs of neighbouring pixels within rows, in reading order, each with the part that it belongs to.

    Parts are sets of pixels that touch, at edges and corners, too: 8 neighbours within a slice, 26 with those beside
    it. There are some hundred times fewer runs than pixels, so what can be told from them is told fast.

    Attributes:
        index: of the slice.
        row: of the slice.
        start: first column.
        end: one past the last column.
        part: from 0, in the order of the parts' first runs.
        count: of parts.
    """

    index: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    part: np.ndarray
    count: int

    @property
    def length(self) -> np.ndarray:
        """Pixels of each run."""
        return np.asarray(self.end - self.start)

    @property
    def sizes(self) -> np.ndarray:
        """Pixels of each part."""
        return np.bincount(self.part, weights=self.length, minlength=self.count).astype(int)

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last row and column of each part, 2×count (rows, columns) each; of one slice."""
        low, high = np.full((2, self.count), np.iinfo(int).max), np.full((2, self.count), -1)
        for axis, (first, last) in enumerate(((self.row, self.row), (self.start, self.end - 1))):
            np.minimum.at(low[axis], self.part, first)
            np.maximum.at(high[axis], self.part, last)
        return low, high

    def picture(self, part: int) -> tuple[np.ndarray, tuple[int, int]]:
        """One part, of one slice, as h×w bool, and its first row and column."""
        mine = self.part == part
        row, start, end = self.row[mine], self.start[mine], self.end[mine]
        top, left = int(row[0]), int(start.min())
        steps = np.zeros((row[-1] - top + 1, end.max() - left + 1), np.int8)
        steps[row - top, start - left] = 1
        steps[row - top, end - left] = -1
        return np.cumsum(steps, axis=1, dtype=np.int8)[:, :-1].astype(bool), (top, left)


def find_parts(slices: Iterable[np.ndarray]) -> Runs:
    """Finds the parts of a mask.

    Runs of pixels within a row are joined with the runs they touch in the rows beside it, in this slice and the one
    before. One slice is held at a time.

    Args:
        slices: H×W bool each, in order.
    """
    rows, starts, ends = _runs(slices)
    if not len(rows):
        none = np.zeros(0, int)
        return Runs(none, none, none, none, none, 0)
    height, width = rows.max(axis=0)[1] + 2, ends.max() + 2
    line = rows[:, 0] * height + rows[:, 1]
    first, last = line * width + starts, line * width + ends
    pairs = []
    for back, up in ((0, 1), (1, -1), (1, 0), (1, 1)):  # rows that came before: each pair of rows is met once
        if back and rows[0, 0] == rows[-1, 0]:
            continue  # one slice
        # Of that row, the runs that end at or after our start and begin at or before our end; both one pixel wider
        # for corners. No run reaches a row's last place, so that no other row's runs come between.
        shift = (back * height + up) * width
        low = np.searchsorted(last, first - shift, side="left")
        high = np.searchsorted(first, last - shift, side="right")
        many = np.maximum(high - low, 0)
        here = np.repeat(np.arange(len(line)), many)
        there = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + np.repeat(low, many)
        pairs.append(np.stack([here, there]))
    root = _join(len(line), np.concatenate(pairs, axis=1))
    named, part = np.unique(root, return_inverse=True)
    return Runs(rows[:, 0], rows[:, 1], starts, ends, part, len(named))


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Numbers the 8-connected parts of a mask from 1, in reading order of their first pixels, H×W; 0 outside."""
    found, parts = find_parts([mask.astype(bool)]), np.zeros(mask.shape, int)
    parts[mask.astype(bool)] = np.repeat(found.part + 1, found.length)  # both in reading order
    return parts


def _runs(slices: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every run: slice and row (N×2), first column, one past the last column; in reading order."""
    rows, starts, ends = [np.zeros((0, 2), int)], [np.zeros(0, int)], [np.zeros(0, int)]
    for index, mask in enumerate(slices):
        if not mask.any():
            continue
        steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        row, start = np.nonzero(steps == 1)
        rows.append(np.stack([np.full_like(row, index), row], axis=1))
        starts.append(start)
        ends.append(np.nonzero(steps == -1)[1])
    return np.concatenate(rows), np.concatenate(starts), np.concatenate(ends)


def _join(count: int, pairs: np.ndarray) -> np.ndarray:
    """The least member of each one's group, where `pairs` (2×P) are of one group.

    Source: Shiloach and Vishkin, An O(log n) parallel connectivity algorithm, J. Algorithms 3(1), 1982 (the idea).
    """
    root = np.arange(count)
    while True:
        a, b = root[pairs[0]], root[pairs[1]]
        apart = a != b
        if not apart.any():
            return root
        pairs, a, b = pairs[:, apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask with its holes: all that is not joined to the outside."""
    outside = connected_parts(~np.pad(mask, 1))
    return np.asarray(outside != outside[0, 0])[1:-1, 1:-1]
