"""The C++ code under the compilers at hand, with their warnings, and with which flags it is built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wsign-conversion", "-Werror")


@pytest.mark.parametrize("unit", ["bindings.cpp", "cpu_kernels.cpp"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_the_sources_are_c_plus_plus_17_without_a_warning(compiler: str, unit: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    headers = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = [compiler, "-fsyntax-only", "-std=c++17", *WARNINGS, *(f"-isystem{folder}" for folder in headers)]
    openmp = ["-fopenmp"] if compiler == "g++" else []
    done = subprocess.run([*command, *openmp, str(ROOT / "csrc" / unit)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernels use OpenMP on Linux alone")
@pytest.mark.parametrize(("version", "openmp"), [("g++ (Debian) 12.2.0", True), ("Debian clang version 14.0.6", False)])
def test_clang_brings_no_second_openmp_runtime(version: str, openmp: bool, tmp_path: Path) -> None:
    """By a compiler that writes down what it was asked."""
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version) echo "{version}"; exit;; esac\n'
        f'echo "$@" >> {log}\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    places = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = {**os.environ, "CC": str(compiler), "CXX": str(compiler)}
    environment.pop("CULNIG_SANITIZE", None)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--force", *places],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [line for line in log.read_text().splitlines() if "cpu_kernels" in line]
    assert len(kernels) == 2, "compiled and linked"
    assert all(("-fopenmp" in line) == openmp for line in kernels)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_what_no_memory_is_left_for_a_thread_is_done_by_the_others(tmp_path: Path) -> None:
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text("""
#include <atomic>
#include <cstdlib>
#include <new>
#include "threads.hpp"
std::atomic<int> left{1 << 30};
void* operator new(std::size_t size) {
    if (--left < 0) throw std::bad_alloc();
    return std::malloc(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
int main() {
    std::atomic<int> done{0};
    left = 3;  // the list of threads, and two of the seven
    culnig::share_out(1000, 8, [&](unsigned, std::size_t) { ++done; });
    return done == 1000 && left < 0 ? 0 : 1;
}
""")
    flags = ["-std=c++17", "-pthread", "-I", str(ROOT / "csrc")]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    assert subprocess.run([str(program)], check=False).returncode == 0
