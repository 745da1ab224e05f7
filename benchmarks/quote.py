"""CPU time to parse and verify one quote, for each kind of AK: `python benchmarks/quote.py`.

The quotes cover 16 PCRs of the sha256 bank, as a verifier with a runtime and a measured-boot policy asks for.
Process CPU time, best of several batches; no network, no TPM.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import AttestationKey, SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import PcrSelection, PcrValues
from keylime.tpm.quote import parse_quote, verify_quote
from tests.captures import AK_LABELS, captures
from tests.fakes.software_ak import SoftwareAk

_BATCHES = 7
_ROUNDS = 300
_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class Case:
    """One quote and the question that it answers."""

    label: str
    text: str
    key: AttestationKey
    nonce: bytes
    selection: PcrSelection


def captured_cases() -> Iterator[Case]:
    """Genuine quotes of one captured machine."""
    stage = captures()[0].stage("s1-clean")
    for label in AK_LABELS:
        quote = stage.quote(label, "sha256")
        key = parse_attestation_key(quote.ak_public)
        selection = PcrSelection.from_mask(HashAlgorithm.SHA256, _MASK)
        yield Case(
            f"{key.encryption_label} {label} (captured)", quote.text, key, quote.nonce.encode(), selection
        )


def software_cases() -> Iterator[Case]:
    """The kinds of AK of which there is no capture."""
    pcrs = PcrValues(HashAlgorithm.SHA256, {index: bytes([index]) * 32 for index in range(16)})
    for kind, scheme, algorithm in (
        ("rsa3072", SignatureScheme.RSASSA, HashAlgorithm.SHA384),
        ("ecc384", SignatureScheme.ECDSA, HashAlgorithm.SHA384),
        ("ecc521", SignatureScheme.ECDSA, HashAlgorithm.SHA512),
    ):
        ak = SoftwareAk.generate(kind, scheme, algorithm)
        key = parse_attestation_key(ak.tpm2b_public)
        yield Case(f"{kind} {scheme.label}", ak.quote(b"nonce", pcrs), key, b"nonce", pcrs.selection)


def cpu_us(work: Callable[[], object]) -> float:
    """Microseconds of CPU time that one call of `work` takes."""
    best = float("inf")
    for _ in range(_BATCHES):
        start = time.process_time()
        for _ in range(_ROUNDS):
            work()
        best = min(best, time.process_time() - start)
    return best / _ROUNDS * 1e6


def main() -> None:
    """Prints the table."""
    table = Table(title="CPU per quote, microseconds")
    for heading in ("AK", "parse_quote", "verify_quote", "both"):
        table.add_column(heading, justify="left" if heading == "AK" else "right")
    for case in (*captured_cases(), *software_cases()):
        parse = cpu_us(lambda case=case: parse_quote(case.text))  # type: ignore[misc]
        quote = parse_quote(case.text)
        verify = cpu_us(
            lambda case=case, quote=quote: verify_quote(quote, case.key, case.nonce, case.selection)  # type: ignore[misc]
        )
        table.add_row(case.label, f"{parse:.0f}", f"{verify:.0f}", f"{parse + verify:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
