"""The wheel: what it holds, that it works away from its sources, and without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("culnig_fast", "kernels", "csrc", "pyproject.toml", "setup.py", "LICENSE", "README.md")


def build_wheel(folder: Path, **environment: str) -> Path:
    """Build from a copy of the sources, so that nothing built or left over in the tree can help."""
    source = folder / "source"
    source.mkdir(parents=True)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=unwanted)
        elif path.exists():
            shutil.copy(path, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        folder,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def run_from(wheel: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code that sees the unpacked wheel and neither the source tree nor an editable install of it."""
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    sources = [str(ROOT), str(ROOT / "kernels")]
    setup = (
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]\n"
        f"sys.path = [{str(site)!r}, *(path for path in sys.path if path not in {sources})]\n"
    )
    code = setup + code
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=folder, check=False)


USE = """
import numpy as np, culnig_kernels, culnig_fast
from culnig_fast import ranking, selection
for module in (culnig_kernels, culnig_fast, selection):
    assert module.__file__.startswith(sys.path[0]), module.__file__
best, scores = ranking.rank(ranking.Source("s", np.array([[1.0, 3.0, 2.0]]), 2), None, np.array([[0, 3]]), 2)
print(selection.implementation(), best.tolist(), scores.tolist())
"""


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "culnig_fast", "kernels/culnig_kernels"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout: no list of the sources")
    present = [name.removeprefix("kernels/") for name in tracked if (ROOT / name).exists()]
    assert {name for name in present if name not in inside} == set()
    assert any(name.startswith("culnig_fast/_selection.") for name in inside)
    assert not [name for name in inside if name.startswith(("tests/", "bench/", "csrc/", "kernels/"))]


def test_wheel_has_the_project_s_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "culnig_fast/version.py").read_text(encoding="utf-8"))
    assert version is not None
    assert f"\nVersion: {version[1]}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    entry_points = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "culnig-fast = culnig_fast.cli:main" in entry_points


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_wheel_works_away_from_its_sources(wheel: Path, tmp_path: Path) -> None:
    done = run_from(wheel, tmp_path, USE)
    assert done.stdout == "C++ [1, 2] [1.5, 1.0]\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="compilers are not chosen by CC and CXX")
def test_without_a_compiler_the_twin_is_used_and_says_so(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "build", CC="no-such-compiler", CXX="no-such-compiler")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "_selection." in name and name.endswith(".so")]
    done = run_from(wheel, tmp_path, USE)
    assert done.stdout == "NumPy [1, 2] [1.5, 1.0]\n", done.stderr
    assert "installed without its C++ core" in done.stderr


def test_constraints_are_bare_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r'[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*(; python_version >= "3\.11")?', pin), pin
    for needed in ("torch==2.13.0", "triton==3.7.1", "transformers==5.17.0"):
        assert needed in pins


def test_the_build_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import runpy; sys.argv = ['setup.py', '--version']"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path('setup.py')"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
