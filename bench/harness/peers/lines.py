"""How much a user writes: logical source lines of one function."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any


def logical_lines(source: str) -> int:
    """Logical lines of a function's source, its `def` and functions inside it counted.

    A statement over several lines is one; blank lines, comments and docstrings are none. Two statements on one line
    are two, so that nothing is gained by squeezing.

    Raises:
        SyntaxError: it is no Python.
    """
    source = textwrap.dedent(source)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    docstrings = sum(ast.get_docstring(node) is not None for node in functions)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    ends = sum(token.type == tokenize.NEWLINE or token.string == ";" for token in tokens)
    return ends - docstrings


def lines_of(function: Callable[..., Any]) -> int:
    """`logical_lines` of a function as it stands in its file."""
    return logical_lines(inspect.getsource(function))
