"""A secret sealed into a credential, with fresh randomness. Needs no TPM: tpm2-pytss computes in software."""

from tpm2_pytss import TPM2B_PUBLIC  # type: ignore[import-untyped]  # the package has no type information
from tpm2_pytss.utils import make_credential as seal_credential  # type: ignore[import-untyped]

from keylime.tpm.credential import credential_blob
from keylime.tpm.keys import EndorsementKey


def make_credential(ek: EndorsementKey, ak_name: bytes, secret: bytes) -> bytes:
    """`secret` sealed to the TPM of `ek` and the key named `ak_name`, as a `tpm2_makecredential` file.

    Raises ValueError for an empty secret or one longer than the EK's name hash: TPMs refuse to hold it.
    """
    if not 0 < len(secret) <= ek.name_alg.size:
        raise ValueError(f"a credential for this EK has 1 to {ek.name_alg.size} bytes, not {len(secret)}")
    public, _ = TPM2B_PUBLIC.unmarshal(ek.tpm2b_public)
    id_object, encrypted_secret = seal_credential(public, secret, ak_name)
    sealed: bytes = id_object.marshal() + encrypted_secret.marshal()
    return credential_blob(sealed)
