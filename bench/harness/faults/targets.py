"""Every reader there is."""

from __future__ import annotations

from harness.faults.commands import command_readers
from harness.faults.model_files import model_readers
from harness.faults.readers import Reader, file_readers
from harness.faults.run_files import run_readers
from harness.faults.task_files import task_readers


def readers() -> tuple[Reader, ...]:
    """Of files, of benchmarks, of checkpoints and runs, and the commands that read files without a model."""
    return (*file_readers(), *task_readers(), *model_readers(), *run_readers(), *command_readers())
