"""Why the registrar does not do what it is asked for, beside what is wrong with the registration itself."""

from keylime.errors import KeylimeError


class TooManyRequests(KeylimeError):
    """A source has caused more work than it may; it is to come back in `wait_s` seconds."""

    def __init__(self, address: str, wait_s: float, what: str = "registrations and activations") -> None:
        super().__init__(f"{address} sends too many {what}")
        self.wait_s = wait_s


class RegistrationConflict(KeylimeError):
    """Another process activated the same id in the same moment."""
