"""Numbers as people write them."""

import pytest

from segcore import words
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


def test_words_for_numbers():
    assert words.signed(-0.00321) == "−0.0032"
    assert words.signed(-0.00001) == "0.0000"
    assert words.difference(0.01, -0.02, 0.04) == "+0.0100 (−0.0200 to +0.0400)"
    assert [words.count(v) for v in (487_145, 31_040_000, 48_200_000_000, 12)] == [
        "487 k",
        "31.0 M",
        "48.2 G",
        "12",
    ]
    assert words.megabytes(1_955_994) == "1.96 MB"
    assert [words.plural(2, unit) for unit in ("batch", "epoch")] == ["2 batches", "2 epochs"]
    assert [words.rough_time(s) for s in (0.4, 99, 100, 5_900, 11_100)] == [
        "0 s",
        "99 s",
        "2 min",
        "98 min",
        "3 h 05 min",
    ]
    assert [words.percent(v) for v in (0.0062, 0.1234, 1.04)] == ["0.620 %", "12.3 %", "104 %"]
    assert words.distance(3.214, 2.9, 3.62, "px") == "3.21 px (2.90–3.62)"
    assert words.times(31.44) == "31×"
    assert [words.percent(0.1234, decimals) for decimals in (0, 1)] == ["12 %", "12.3 %"]
    assert words.difference(1.234, -0.5, 2, 2) == "+1.23 (−0.50 to +2.00)"
    assert (words.ranged(2.129, 1.98, 2.2, 2), words.ranged(2.0, None, None, 1)) == (
        "2.13 (1.98–2.20)",
        "2.0",
    )
