"""What bad input and outside signals raise."""

from __future__ import annotations


class CulnigError(ValueError):
    """Something given cannot be used; the message is one sentence that names the thing and the remedy."""


class Interrupted(KeyboardInterrupt):
    """Long work was asked to stop by a signal, and did so between two batches.

    Attributes:
        number: of the signal; a command exits with 128 + number.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number
