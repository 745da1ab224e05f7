"""What errors of the TPM stack mean: the TPM says no, or it is not there any more.

Sources: TSS 2.0 Overview 3.2 (layers), TPM 2.0 Library part 2, 6.6 (codes).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tpm2_pytss.TSS2_Exception import TSS2_Exception  # type: ignore[import-untyped]  # ships no types

from keylime.errors import TpmError, TpmLost

# TSS 2.0 Overview 3.2: the layer that reports an error is in bits 16 to 23.
_LAYER, _CODE = 0xFF0000, 0xFFFF
_LAYER_TPM, _LAYER_ESYS, _LAYER_TCTI, _LAYER_RESMGR, _LAYER_RESMGR_TPM = (
    0x0,
    0x70000,
    0xA0000,
    0xB0000,
    0xC0000,
)
_NO_CONNECTION = _LAYER_TCTI | 0x8
_BAD_SEQUENCE = 0x7  # what ESYS says to every command after one that was cut off
# TPM 2.0 part 2, 6.6: no TPM2_Startup yet, a handle (1 to 7, of any session) that holds nothing, and the same
# as a value of the wrong kind.
_RC_INITIALIZE, _RC_REFERENCES, _RC_HANDLE, _FORMAT_1 = 0x100, range(0x910, 0x917), 0x8B, 0xBF


class NotOpen:
    """Stands for a TPM between an end of the connection and the next one: every command fails."""

    def __getattr__(self, name: str) -> Any:
        raise TSS2_Exception(_NO_CONNECTION)

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def tpm_command(name: str) -> Iterator[None]:
    """What fails inside is told as TpmError, or TpmLost, with the command's name."""
    try:
        yield
    except TSS2_Exception as error:
        kind = TpmLost if is_loss(int(error.rc)) else TpmError
        raise kind(f"{name} failed: {error} ({int(error.rc):#x})") from error


def is_loss(code: int) -> bool:
    """Whether an error of this number means that the TPM, or a key that was loaded, is not there any more."""
    layer, number = code & _LAYER, code & _CODE
    if layer in (_LAYER_TCTI, _LAYER_RESMGR):
        return True
    if layer == _LAYER_ESYS:
        return number == _BAD_SEQUENCE
    if layer not in (_LAYER_TPM, _LAYER_RESMGR_TPM):
        return False
    return number == _RC_INITIALIZE or number in _RC_REFERENCES or number & _FORMAT_1 == _RC_HANDLE
