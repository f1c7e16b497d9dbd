"""The version, read by the build as well; it stands nowhere else."""

__version__ = "0.1.0"
