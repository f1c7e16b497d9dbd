"""The wheel, built out of the source distribution: what they hold, that it works away from its sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def copy_of_the_sources(folder: Path) -> Path:
    """Every file that git knows, so that nothing built or left over in the tree can help."""
    source = folder / "source"
    names = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.splitlines()
    if not names:
        pytest.skip("not a git checkout: no list of the sources")
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    return source


def build_sdist(folder: Path) -> Path:
    source = copy_of_the_sources(folder)
    command = [sys.executable, "-c", BUILD_SDIST, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = folder.glob("*.tar.gz")
    return sdist


def build_wheel(sdist: Path, folder: Path, **environment: str) -> Path:
    """Build from the source distribution, as pip does where no wheel fits."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        folder,
        sdist,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


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
from culnig_fast.selection import ranking
from culnig_fast.selection import rules as selection
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
    for library in ("culnig_fast/_selection.", "culnig_kernels/_cpu."):
        assert any(name.startswith(library) for name in inside), library
    assert not [name for name in inside if name.startswith(("tests/", "bench/", "csrc/", "kernels/", "docs/"))]


def test_wheel_holds_what_is_no_python(wheel: Path) -> None:
    """Named one by one: a list of the tracked files would not miss a folder that was never added."""
    inside = zipfile.ZipFile(wheel).namelist()
    for pattern in (
        r"culnig_fast/py\.typed",
        r"culnig_fast/__init__\.pyi",
        r"culnig_kernels/py\.typed",
        r"culnig_fast/presets/.+\.ya?ml",
        r"culnig_fast/report/templates/.+",
        r"culnig_fast/report/static/.+\.css",
        r"culnig_fast/report/static/.+\.js",
        r"culnig_fast/tables/published\.json",
        r"culnig_fast/tasks/data/.+",
        r"culnig_fast/demo/model/model\.safetensors",
        r"culnig_fast/demo/model/tokenizer\.json",
        r"culnig_fast/demo/data/blend\.jsonl",
        r"culnig_fast-[^/]+\.dist-info/licenses/LICENSE",
    ):
        assert [name for name in inside if re.fullmatch(pattern, name)], pattern


def test_source_distribution_holds_what_is_needed_to_build_test_and_document(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    wanted = {name for name in tracked if (ROOT / name).exists() and not name.startswith((".ci", ".git"))}
    assert wanted - names == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_every_extra_that_is_spoken_of_exists(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", archive.read(name).decode(), re.MULTILINE))
    assert {"train", "report", "docs"} <= extras
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "culnig_fast").rglob("*.py")]
    named = {extra for page in pages for extra in re.findall(r"culnig[-_]fast\[(\w+)\]", page.read_text("utf-8"))}
    named |= set(re.findall(r"^\| `(\w+)` \| .+ \|$", (ROOT / "docs/index.md").read_text("utf-8"), re.MULTILINE))
    assert named - extras == set()


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
def test_without_a_compiler_the_twin_is_used_and_says_so(sdist: Path, tmp_path: Path) -> None:
    wheel = build_wheel(sdist, tmp_path / "build", CC="no-such-compiler", CXX="no-such-compiler")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    done = run_from(wheel, tmp_path, USE)
    assert done.stdout == "NumPy [1, 2] [1.5, 1.0]\n", done.stderr
    assert "installed without its C++ core" in done.stderr


def test_constraints_are_bare_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r'[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*(; python_version (>=|<) "3\.11")?', pin), pin
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
