"""Curves in characters: what is drawn where."""

import math

import pytest

from sinlstm_dist.screen.sketch import BLOCKS, curve, spark


def test_a_spark_is_logarithmic_from_the_lowest_block_to_the_highest():
    assert spark([1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]) == BLOCKS[::-1]
    assert spark([3.0, 3.0]) == "▁▁"
    assert spark([0.0, math.inf, math.nan, 2.0, 1.0]) == "█▁"
    assert spark([]) == ""


@pytest.mark.parametrize("number", [41, 100, 12345])
def test_many_values_are_thinned_out_from_the_first_to_the_last(number):
    values = [1.0] * number
    values[0], values[-1] = 8.0, 1 / 8
    drawn = spark(values, width=40)
    assert len(drawn) == 40
    assert (drawn[0], drawn[-1], drawn[20]) == ("█", "▁", "▅")


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """(row, column) of every dot, by Unicode's numbering of the dots of a braille character."""
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    return {
        (4 * i + row, 2 * j + column)
        for i, line in enumerate(lines)
        for j, character in enumerate(line)
        for bit, (row, column) in enumerate(places)
        if character != " " and (ord(character) - 0x2800) >> bit & 1
    }


def test_a_curve_goes_through_its_values():
    values = [math.sin(2 * math.pi * i / 59) for i in range(60)]
    lines = curve(values, width=30, height=5, low=-1, high=1)
    assert [len(line) for line in lines] == [30] * 5
    drawn = dots(lines)
    for column in range(60):
        rows = [row for row, where in drawn if where == column]
        assert min(abs(row - (1 - values[column]) / 2 * 19) for row in rows) <= 0.5 + 1e-9


def test_a_steep_curve_has_no_gaps_and_one_beyond_the_edge_stays_inside():
    drawn = dots(curve([-5.0, 5.0], width=2, height=3, low=-1, high=1))
    assert {row for row, _ in drawn} == set(range(12))
    assert {column for _, column in drawn} == set(range(4))


def test_few_values_are_joined_by_lines_and_unknown_ones_left_out():
    assert dots(curve([0.0, 3.0], width=2, height=1, low=0, high=3)) >= {
        (3, 0), (2, 1), (1, 2), (0, 3),
    }  # fmt: skip
    assert curve([1.0], width=3, height=1, low=0, high=1) == ["⠉⠉⠉"]
    assert curve([math.nan, math.nan], width=2, height=2, low=0, high=1) == ["  ", "  "]
