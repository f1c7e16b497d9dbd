"""Builds the C++ code, `culnig_fast._selection` and `culnig_kernels._cpu`; everything else stands in pyproject.toml."""

import os
import subprocess
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
# The kernels use the OpenMP runtime that torch has loaded, GCC's; elsewhere than on Linux there may be none to share,
# and clang would bring its own beside it. Without OpenMP they share out their work over plain threads.
OPENMP = ["-fopenmp"] if sys.platform == "linux" and not SANITIZE else []
# Multiply-adds may be contracted here, and comparisons are free of side effects, so that loops become vector code.
FAST = [] if MSVC else ["-fno-math-errno", "-fno-trapping-math"]
CPU_KERNELS = Pybind11Extension(
    "culnig_kernels._cpu",
    ["csrc/cpu_kernels.cpp"],
    depends=[str(path) for path in [*sorted(Path("csrc/cpu").iterdir()), Path("csrc/threads.hpp")]],
    cxx_std=17,
    extra_compile_args=[*(flag for flag in FLAGS if flag != "-ffp-contract=off"), *FAST, *OPENMP],
    extra_link_args=[*LINK, *OPENMP],
)
WITHOUT = {
    CORE.name: "selection will use the slower NumPy twin, with the same results",
    CPU_KERNELS.name: "a CPU will use the slower torch operations, with the same results to rounding",
}


class OptionalBuild(build_ext):
    """Builds the C++ code where it can; without it the package works, slower."""

    def build_extension(self, ext: Pybind11Extension) -> None:
        # Compilers fail in many ways (none found, too old, no Python headers), each with its own exception.
        try:
            if OPENMP and self.is_clang():
                ext.extra_compile_args = [flag for flag in ext.extra_compile_args if flag not in OPENMP]
                ext.extra_link_args = [flag for flag in ext.extra_link_args if flag not in OPENMP]
            super().build_extension(ext)
        except Exception as error:
            print(f"culnig_fast: {ext.name} was not built ({error}); {WITHOUT[ext.name]}", file=sys.stderr)
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.missing = [*getattr(self, "missing", []), ext]

    def is_clang(self) -> bool:
        """Whether the compiler is clang, by whatever name it goes."""
        command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        # With all that comes before and after its name, such as ccache.
        asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        return "clang" in asked.stdout

    def copy_extensions_to_source(self) -> None:
        """Editable installs: copy only what was built."""
        built = [ext for ext in self.extensions if ext not in getattr(self, "missing", [])]
        everything, self.extensions = self.extensions, built
        super().copy_extensions_to_source()
        self.extensions = everything


setup(ext_modules=[CORE, CPU_KERNELS], cmdclass={"build_ext": OptionalBuild})
