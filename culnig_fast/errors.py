"""What bad input and outside signals raise, and what doubtful input warns with."""

from __future__ import annotations

_LONGEST, _END = 1500, 300


class CulnigError(ValueError):
    """Something given cannot be used; the message is one sentence that names the thing and the remedy.

    Messages quote what files hold. So that a file can neither fill a screen nor send it commands, a long message loses
    its middle, line breaks become spaces, and other characters that cannot be printed are shown as escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_shown(str(message)))


class CulnigWarning(UserWarning):
    """Something given can be used, but perhaps not as it was meant; the message is one line, made as an error's is.

    Commands show it on standard error.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(_shown(str(message)))


class Interrupted(KeyboardInterrupt):
    """Long work was asked to stop by a signal, and did so between two batches.

    Attributes:
        number: of the signal; a command exits with 128 + number.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


def _shown(message: str) -> str:
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST - _END]} … {message[-_END:]}"
    if message.isprintable():
        return message
    return "".join(_visible(character) for character in message)


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character in "\n\r\t\v\f\x85\xa0\u2028\u2029" else character.encode("unicode_escape").decode()
