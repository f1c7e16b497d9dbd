"""Builds the C++ core `culnig_fast._selection`; everything else stands in pyproject.toml."""

import os
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

MSVC = sys.platform == "win32"
# Contracted multiply-adds would break the bitwise agreement with the NumPy twin on machines that have them.
FLAGS = ["/O2", "/fp:precise"] if MSVC else ["-O3", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra"]
LINK = [] if MSVC else ["-pthread"]
# E.g. "address,undefined" or "thread", for `make test-sanitize` alone.
SANITIZE = os.environ.get("CULNIG_SANITIZE")
if SANITIZE:
    FLAGS += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
    LINK += [f"-fsanitize={SANITIZE}"]
CORE = Pybind11Extension(
    "culnig_fast._selection",
    ["csrc/bindings.cpp"],
    depends=[str(path) for path in sorted(Path("csrc").glob("*.hpp"))],
    cxx_std=17,
    extra_compile_args=FLAGS,
    extra_link_args=LINK,
)


class OptionalBuild(build_ext):
    """Builds the core where it can; without it the package works, with the slower NumPy twin."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        # Compilers fail in many ways (none found, too old, no Python headers), each with its own exception.
        try:
            super().build_extension(ext)
        except Exception as error:
            print(
                f"culnig_fast: {ext.name} was not built ({error}); "
                "selection will use the slower NumPy twin, with the same results",
                file=sys.stderr,
            )
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.missing = [*getattr(self, "missing", []), ext]

    def copy_extensions_to_source(self) -> None:
        """Editable installs: copy only what was built."""
        built = [ext for ext in self.extensions if ext not in getattr(self, "missing", [])]
        everything, self.extensions = self.extensions, built
        super().copy_extensions_to_source()
        self.extensions = everything


setup(ext_modules=[CORE], cmdclass={"build_ext": OptionalBuild})
