"""Certificates of third parties are read without the crypto library's advice to their makers.

The library warns of what it reads all the same: serial numbers that are not positive, attributes longer than
their standard allows, packages in BER. Whoever runs this software can change none of it. Filters of warnings
belong to the process, not to those who parse in it: each program sets them once, when it starts.
"""

import warnings

from cryptography.utils import CryptographyDeprecationWarning

_OTHER_ADVICE = ("Attribute's length must be", "PKCS#7 certificates could not be parsed as DER")


def ignore_library_warnings() -> None:
    """From here on nothing is said about other people's certificates."""
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    for beginning in _OTHER_ADVICE:
        warnings.filterwarnings("ignore", beginning, UserWarning)
