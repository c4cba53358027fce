"""Numbers as people write them."""

import pytest

from segcore.words import bounded_ratio, figures, fixed_percent


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (4.5, "4.50"), (9.996, "10.0"), (78.94, "78.9"), (-4.567, "-4.57"),
     (999.6, "1000"), (1234.5, "1230"), (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_three_figures(value, text):
    assert figures(value) == text


def test_two_figures():
    assert [figures(value, 2) for value in (0.996, 31.4, 1234)] == ["1.0", "31", "1200"]


def test_shares_and_limits_have_three_decimals():
    assert [fixed_percent(share) for share in (0.0, 0.00012345, 0.005, 1.0)] == [
        "0.000 %", "0.012 %", "0.500 %", "100.000 %"
    ]  # fmt: skip


@pytest.mark.parametrize("bound", [1.05, 1.15, 1.5, 2.0])
def test_a_ratio_below_its_bound_never_reads_as_the_bound(bound):
    assert bounded_ratio(bound) == f"{bound:.2f}"
    for below in (bound - 1e-4, bound - 1e-5, bound - 0.004999):
        assert float(bounded_ratio(below)) < bound
    assert [bounded_ratio(x) for x in (1.0499, 1.05, 0.999, 12.0)] == ["1.04", "1.05", "0.99", "12.00"]
