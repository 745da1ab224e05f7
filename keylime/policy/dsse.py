"""See `keylime.documents.dsse`."""

from keylime.documents.dsse import is_envelope, open_envelope, verify_envelope

__all__ = ["is_envelope", "open_envelope", "verify_envelope"]
