"""Whole files or none: existing output, missing folders, full disks, killed processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from culnig_fast.errors import CulnigError
from culnig_fast.files import (
    atomic_folder,
    atomic_write,
    check_output,
    check_writable,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)


def test_an_error_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path, overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CulnigError, match="absent"):
        write_text(tmp_path / "absent" / "out.txt", "x")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CulnigError, match=r"No space left.*free some space"):
        write_text(path, "new", overwrite=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_truly_full_device_is_one_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code = (
        "import culnig_fast.files as f\n"
        "try:\n"
        "    with f.atomic_write('x.txt'), open('/dev/full', 'w') as file:\n"
        "        file.write('y')\n"
        "except f.CulnigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "cannot write x.txt: No space left on device" in done.stdout


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")
    code = (
        "import os, signal, sys\nfrom culnig_fast.files import atomic_write\n"
        "with atomic_write(sys.argv[1], overwrite=True) as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "out.txt", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o644


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"ü": [1, 2.5]})
    assert read_json(path) == {"ü": [1, 2.5]}
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]
    for bad in (b"{", b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(bad)
        with pytest.raises(CulnigError, match=r"x\.json"):
            read_json(path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_folder(out) as temporary:
        (temporary / "a").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_folder(out) as temporary:
        (temporary / "a").write_text("x")
    assert (out / "a").read_text() == "x"
    with pytest.raises(CulnigError, match="exists already"), atomic_folder(out):
        pass


@pytest.mark.parametrize("links", [True, False])
def test_of_two_writers_of_a_new_file_one_is_refused(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.txt"
    if not links:

        def refuse(*names: object) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(CulnigError, match="exists already"), atomic_write(path) as temporary:
        temporary.write_text("second")
        write_text(path, "first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_file_that_comes_at_the_last_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    # Whatever looks beforehand sees nothing: it is the naming itself that must refuse.
    monkeypatch.setattr("culnig_fast.files.refuse_existing", lambda *a, **k: None)
    with pytest.raises(CulnigError, match="exists already"), atomic_write(path) as temporary:
        temporary.write_text("second")
        path.write_text("first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    folder = tmp_path / "folder"
    with pytest.raises(CulnigError, match="exists already"), atomic_folder(folder):
        folder.mkdir()
        (folder / "first").touch()
    assert list(folder.iterdir()) == [folder / "first"]


@pytest.mark.parametrize("letter", ["n", "ü"])
def test_a_long_name_is_written(letter: str, tmp_path: Path) -> None:
    path = tmp_path / (letter * (250 // len(letter.encode())))
    write_text(path, "x")
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]
    with atomic_folder(tmp_path / ("f" * 255)) as temporary:
        assert len(os.fsencode(temporary.name)) < 200
    with pytest.raises(RuntimeError), atomic_write(path, overwrite=True) as temporary:
        remove_leftovers(tmp_path / (letter * (250 // len(letter.encode())) + "x"))
        assert temporary.exists()
        remove_leftovers(path)
        assert not temporary.exists()
        raise RuntimeError
    for work in (check_writable, lambda name: write_text(name, "x")):
        with pytest.raises(CulnigError, match="File name too long"):
            work(tmp_path / ("n" * 256))


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused(word: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'{{"a": [{word}]}}')
    with pytest.raises(CulnigError, match=f"{word} is no number"):
        read_json(tmp_path / "a.json")


def test_a_folder_that_a_library_cannot_fill(tmp_path: Path) -> None:
    """safetensors and tokenizers report a full disk by classes of their own; a limit on files' size acts alike."""
    code = (
        "import resource, sys\nimport torch, transformers\nfrom culnig_fast.files import CulnigError, atomic_folder\n"
        "sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)\n"
        "model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n    with atomic_folder(sys.argv[1]) as temporary:\n        model.save_pretrained(temporary)\n"
        "except CulnigError as error:\n    print(error)\n"
    )
    pytest.importorskip("resource", reason="this system knows no such limit")
    out = tmp_path / "model"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == (f"cannot write {out}: File too large; free some space or choose another output path\n"), (
        done.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [RuntimeError("(os error that is none)"), ValueError("no"), CulnigError("(os error 28)")]
)
def test_what_is_no_error_of_the_system_stays_what_it_is(error: Exception, tmp_path: Path) -> None:
    for writer in (atomic_write, atomic_folder):
        with pytest.raises(type(error)) as raised, writer(tmp_path / "out"):
            raise error
        assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    for overwrite, words in ((True, "is a folder, which no file replaces"), (False, "exists already")):
        with pytest.raises(CulnigError, match=words):
            check_output(tmp_path, overwrite)
    (tmp_path / "link").symlink_to(tmp_path)
    write_text(tmp_path / "link", "x", overwrite=True)  # replaces the link, not what it leads to
    assert (tmp_path / "link").read_text() == "x"
    with pytest.raises(CulnigError, match="absent"):
        check_output(tmp_path / "absent" / "x", False)
