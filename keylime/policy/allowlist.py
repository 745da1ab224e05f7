"""See `keylime.ima.allowlist`."""

from keylime.ima.allowlist import convert_allowlist

__all__ = ["convert_allowlist"]
