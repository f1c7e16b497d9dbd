"""The public names and signatures as text, and what type checkers read of them.

`python tests/api.py --write` records the text in api.txt beside this file, and writes `culnig_fast/__init__.pyi`: names
that are loaded when first used are of any type to a checker that sees only `__getattr__`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import culnig_fast as cf

RECORD = Path(__file__).with_name("api.txt")
STUB = Path(__file__).resolve().parent.parent / "culnig_fast" / "__init__.pyi"


def describe() -> str:
    """A line a public name and a line a public member, sorted by name."""
    return "".join(f"{line}\n" for name in sorted(cf.__all__) for line in _lines(name, getattr(cf, name)))


def stub() -> str:
    """The package's names as imports, sorted as ruff sorts them."""
    homes = sorted((f"culnig_fast.{home}", name) for name, home in cf._HOMES.items())
    modules: dict[str, list[str]] = {}
    for home, name in homes:
        modules.setdefault(home, []).append(name)
    imports = [f"from {home} import {name} as {name}" for home, names in modules.items() for name in _sorted(names)]
    version = "from culnig_fast.version import __version__ as __version__"
    heading = "# Written by `python tests/api.py --write`; the names stand in __init__.py."
    return "\n".join([heading, "", *sorted([*imports, version], key=_module), ""])


def _module(line: str) -> str:
    return line.split()[1]


def _sorted(names: list[str]) -> list[str]:
    """Classes before functions, as imports are sorted."""
    return sorted(names, key=lambda name: (name[0].islower(), name))


def _lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        # The names of an exception's arguments are not ours, nor the same in every Python.
        built = "" if issubclass(value, Exception) and "__init__" not in vars(value) else _signature(value)
        yield f"class {name}{built}" + (f" is a {bases}" if bases else "")
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield f"    {name}.{field.name}: {field.type}"
        for member in sorted(vars(value)):
            if not member.startswith("_"):
                yield from _member(f"    {name}.{member}", inspect.getattr_static(value, member))
    elif callable(value):
        yield f"{name}{_signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"  # the version, whose value is no part of the API


def _member(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, property):
        yield f"{name}: {inspect.signature(value.fget).return_annotation}"  # type: ignore[arg-type]
    elif isinstance(value, functools.cached_property):
        yield f"{name}: {inspect.signature(value.func).return_annotation}"
    elif isinstance(value, (classmethod, staticmethod)):
        yield f"{name}{_signature(value.__func__)}"
    elif inspect.isfunction(value):
        yield f"{name}{_signature(value)}"


class _Text(str):
    """Text that a signature shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(value: Any) -> str:
    """The signature as the sources write it: annotations are text there, and shown without quotes."""
    signature = inspect.signature(value)
    shown = []
    for parameter in signature.parameters.values():
        # A function's address differs from run to run.
        default = _Text("...") if inspect.isfunction(parameter.default) else parameter.default
        shown.append(parameter.replace(annotation=_bare(parameter.annotation), default=default))
    return str(signature.replace(parameters=shown, return_annotation=_bare(signature.return_annotation)))


def _bare(annotation: Any) -> Any:
    return _Text(annotation) if isinstance(annotation, str) else annotation


def main() -> None:
    """Print the surface, or record it."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="Example: python tests/api.py --write"
    )
    parser.add_argument("--write", action="store_true", help="record it in tests/api.txt and write the stub")
    if parser.parse_args().write:
        RECORD.write_text(describe(), encoding="utf-8")
        STUB.write_text(stub(), encoding="utf-8")
    else:
        print(describe(), end="")


if __name__ == "__main__":
    main()
