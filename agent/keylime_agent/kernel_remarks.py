"""What the kernel's release, as `uname -r` prints it, means for attestation. Pure."""

import re

from keylime.hashes import HashAlgorithm

# keylime/ima/replay.py has both ways of extending.
_FIRST_WITH_DIGESTS_FOR_EACH_BANK = (5, 8)


def bank_remark(release: str, bank: HashAlgorithm) -> str | None:
    """What to know about PCR 10 of the quoted bank under this kernel; None: nothing.

    A release that begins with no two numbers says nothing about itself.
    """
    numbers = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", release)
    if bank is HashAlgorithm.SHA1 or numbers is None:
        return None
    if (int(numbers[1]), int(numbers[2])) >= _FIRST_WITH_DIGESTS_FOR_EACH_BANK:
        return None
    return (
        f"Linux {release} extends PCR 10 of {bank.label} with a padded SHA-1, as kernels before 5.8 do: what "
        "IMA measured is no safer than SHA-1, and some verifiers cannot explain it; use a later kernel"
    )
