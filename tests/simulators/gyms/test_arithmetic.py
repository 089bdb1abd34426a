"""The parser of arithmetic rules: expressions of four variables are computed, everything else is refused."""

import pytest

from simulators.gyms.arithmetic import MOST_RULES, parse_rule


@pytest.mark.parametrize(
    ("rule", "inputs", "value"),
    [
        ("c * (a * b) * d", [3, 5, 5, 3], 225.0),
        ("c - b - d ** a", [2, 1, 5, 3], -5.0),
        ("c ** d ** b ** a", [1, 2, 2, 3], 512.0),  # 2 ** (3 ** (2 ** 1))
        ("-a ** 2 + b / c + d * 0.5", [3, 1, 4, 1], -8.25),
        (" a ", [7, 0, 0, 0], 7.0),
    ],
)
def test_rules_have_the_values_of_arithmetic(rule: str, inputs: list[int], value: float):
    assert parse_rule(rule)(inputs) == value


@pytest.mark.parametrize(
    ("rule", "inputs"),
    [
        ("a / b", [1, 0, 0, 0]),
        ("a ** b ** c", [9, 9, 9, 0]),
        ("a ** b", [-1, 0.5, 0, 0]),
        ("a ** b", [0, -1, 0, 0]),
    ],
)
def test_what_has_no_value_is_an_arithmetic_error(rule: str, inputs: list[float]):
    with pytest.raises(ArithmeticError):
        parse_rule(rule)(inputs)


NO_RULES = (
    *("", "a +", "e", "ab", "a.b", "a[0]", "a(b)", "lambda: a", "a if b else c", "a == b", "a // b", "a % b"),
    *("'a'", "True", "1j", "a\nb", "(" * 150, "\x00", "a" * 300, "+a", "a and b", "__import__('os')"),
)


@pytest.mark.parametrize("rule", NO_RULES)
def test_everything_else_is_refused(rule: str):
    with pytest.raises(ValueError):
        parse_rule(rule)


def test_no_more_rules_are_kept_than_so_many():
    for number in range(MOST_RULES + 8):
        parse_rule(f"a + {number}")
    assert parse_rule.cache_info().currsize <= MOST_RULES
    assert parse_rule("a + 1")([1, 2, 3, 4]) == 2.0
