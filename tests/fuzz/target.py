"""What a fuzz target is: a parser, the errors it may raise, and true input to begin with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from keylime.errors import KeylimeError


@dataclass(frozen=True, slots=True)
class Target:
    """`run` gives any bytes to a parser and checks what it returns; only `errors` may come out of it."""

    run: Callable[[bytes], None]
    errors: tuple[type[KeylimeError], ...]
    seeds: Callable[[], Iterable[bytes]]

    def try_one(self, data: bytes) -> None:
        """One execution: returns, or raises what no caller expects."""
        try:
            self.run(data)
        except self.errors:
            return


def together(*targets: Target) -> Target:
    """Parsers of the same kind of bytes as one target: what interests one of them, all of them get."""

    def run(data: bytes) -> None:
        for target in targets:
            target.try_one(data)

    return Target(run, (), lambda: dict.fromkeys(seed for target in targets for seed in target.seeds()))


Targets = Mapping[str, Target]


def of_unknown_version(certificate: bytes) -> bytes:
    """A DER certificate with version 7 instead of 3: the crypto library has an error of its own for it."""
    return certificate.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020106"), 1)


def text_of(data: bytes) -> str:
    """`data` as the text that a JSON body could carry."""
    return data.decode("utf-8", "replace")
