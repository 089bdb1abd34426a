"""Parser and evaluator of arithmetic expressions over four variables; text is never executed.

Supports `+ - * / **`, the names a, b, c, d and numbers; anything else is refused.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

VARIABLES = "abcd"
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
MAX_LETTERS = 200
MOST_RULES = 4096
"""Size of the cache of parsed rules: more than a file of tasks has, and rules also arrive in outside
calls."""
Rule = Callable[[Sequence[float]], float]


@lru_cache(maxsize=MOST_RULES)
def parse_rule(text: str) -> Rule:
    """The function of [a, b, c, d] that `text` defines. Raises ValueError if it defines none.

    The function raises ArithmeticError if it has no value (division by zero, overflow). Computes in floats
    for all inputs, so that powers cannot explode.

    Example: `parse_rule("c * b ** 2")([1, 3, 5, 7])` is 45.0.
    """
    if len(text) > MAX_LETTERS:
        raise ValueError(f"rule of {len(text)} letters: at most {MAX_LETTERS}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"rule {text!r} is no expression") from error
    compute = _compile(tree, text)
    return lambda inputs: compute([float(value) for value in inputs])


def _compile(node: ast.expr, text: str) -> Rule:
    if isinstance(node, ast.Name) and node.id in VARIABLES and len(node.id) == 1:
        index = VARIABLES.index(node.id)
        return lambda inputs: inputs[index]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        constant = float(node.value)  # type: ignore[arg-type]
        return lambda inputs: constant
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = _compile(node.operand, text)
        return lambda inputs: -operand(inputs)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        apply = OPERATORS[type(node.op)]
        left, right = _compile(node.left, text), _compile(node.right, text)
        return lambda inputs: _real(apply(left(inputs), right(inputs)), text)
    raise ValueError(f"rule {text!r}: only + - * / ** over a, b, c, d and numbers are known")


def _real(value: float | complex, text: str) -> float:
    """Raises ArithmeticError for a complex value (root of a negative number), which later steps could
    hide."""
    if isinstance(value, complex):
        raise ArithmeticError(f"{text} has no real value here")
    return value
