"""Why evidence that anyone brings along is not judged."""

from keylime.errors import KeylimeError


class NotJudged(KeylimeError):
    """Evidence cannot be judged now; later it may be. The reason is for whoever sent it, "" for none."""
