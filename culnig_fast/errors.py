"""The one exception that bad input raises."""


class CulnigError(ValueError):
    """Something given cannot be used; the message is one sentence that names the thing and the remedy."""
