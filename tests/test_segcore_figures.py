"""Significant figures as people write them."""

import pytest

from segcore.figures import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (4.5, "4.50"), (9.996, "10.0"), (78.94, "78.9"), (-4.567, "-4.57"),
     (999.6, "1000"), (1234.5, "1230"), (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_three_figures(value, text):
    assert figures(value) == text


def test_two_figures():
    assert [figures(value, 2) for value in (0.996, 31.4, 1234)] == ["1.0", "31", "1200"]
