"""What the agent's TPM keys look like: names of EK types, AK templates, the policies that authorise an EK.

Sources: TCG EK Credential Profile 2.5 (appendix B), TPM 2.0 Library part 2. Templates of a device's identity
keys are in device_key_templates.py. Talks to no TPM: device.py does.
"""

from typing import Any

from tpm2_pytss.constants import TPM2_ALG, TPM2_ECC, TPMA_OBJECT  # type: ignore[import-untyped]  # ships no types
from tpm2_pytss.types import (  # type: ignore[import-untyped]  # ships no types
    TPM2B_PUBLIC,
    TPMS_ECC_PARMS,
    TPMS_RSA_PARMS,
    TPMS_SCHEME_HASH,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_PARMS,
)

from keylime.hashes import HashAlgorithm

# Every NV index that may hold an EK certificate, in the order of the profile: low range, then high range.
EK_CERTIFICATE_INDICES = (
    0x01C00002,
    0x01C0000A,
    0x01C00012,
    0x01C00014,
    0x01C00016,
    0x01C00018,
    0x01C0001A,
    0x01C0001C,
    0x01C0001E,
)
EK_CHAIN_INDICES = range(0x01C00100, 0x01C00200)

# Templates to consider for each `tpm_encryption_alg`, with the index of the certificate that belongs to them:
# the first one whose certificate is there, else the first. Names are those of tpm2_pytss and the profile.
EK_TEMPLATES: dict[str, tuple[tuple[str, int], ...]] = {
    "rsa2048": (("EK-RSA2048", 0x01C00002), ("EK-HIGH-RSA2048", 0x01C00012)),
    "rsa3072": (("EK-HIGH-RSA3072", 0x01C0001C),),
    "rsa4096": (("EK-HIGH-RSA4096", 0x01C0001E),),
    "ecc256": (("EK-ECC256", 0x01C0000A), ("EK-HIGH-ECC256", 0x01C00014)),
    "ecc384": (("EK-HIGH-ECC384", 0x01C00016),),
    "ecc521": (("EK-HIGH-ECC521", 0x01C00018),),
}

# PolicyC of the profile: PolicyAuthorizeNV with the indices 0x01C07F01 (SHA-256), 02 (SHA-384), 03 (SHA-512).
_POLICY_C = {
    HashAlgorithm.SHA256: "3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde",
    HashAlgorithm.SHA384: (
        "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165"
    ),
    HashAlgorithm.SHA512: (
        "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f"
        "ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8"
    ),
}
_POLICY_OR = bytes.fromhex("00000171")
_POLICY_SECRET = bytes.fromhex("00000151")
_RH_ENDORSEMENT = bytes.fromhex("4000000b")

_AK_ATTRIBUTES = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)
_CURVES = {"ecc256": TPM2_ECC.NIST_P256, "ecc384": TPM2_ECC.NIST_P384, "ecc521": TPM2_ECC.NIST_P521}


def key_label(encryption_alg: str) -> str:
    """`tpm_encryption_alg` with its size: "rsa" is "rsa2048", "ecc" is "ecc256". Raises ValueError."""
    label = {"rsa": "rsa2048", "ecc": "ecc256"}.get(encryption_alg, encryption_alg)
    if label not in EK_TEMPLATES:
        raise ValueError(
            f"unknown key type {encryption_alg!r}, expected one of rsa, ecc, {', '.join(EK_TEMPLATES)}"
        )
    return label


def ak_label(signing_alg: str, encryption_alg: str) -> str:
    """The AK's key type: the EK's when the scheme fits it, else RSA-2048 or P-256. Raises ValueError."""
    family = {"rsassa": "rsa", "rsapss": "rsa", "ecdsa": "ecc"}.get(signing_alg)
    if family is None:
        raise ValueError(f"unknown signing algorithm {signing_alg!r}, expected rsassa, rsapss or ecdsa")
    label = key_label(encryption_alg)
    return label if label.startswith(family) else key_label(family)


def ak_template(signing_alg: str, encryption_alg: str, hash_alg: HashAlgorithm) -> Any:
    """The TPM2B_PUBLIC to create an AK from, with `hash_alg` as its scheme's hash. Raises ValueError.

    `hash_alg` also makes the key's name, except SHA-1, under which two public areas could share one name:
    then the name is made with SHA-256.
    """
    label = ak_label(signing_alg, encryption_alg)
    scheme = {"rsassa": TPM2_ALG.RSASSA, "rsapss": TPM2_ALG.RSAPSS, "ecdsa": TPM2_ALG.ECDSA}[signing_alg]
    name_alg = HashAlgorithm.SHA256 if hash_alg is HashAlgorithm.SHA1 else hash_alg
    area = TPMT_PUBLIC(
        type=key_type(label),
        nameAlg=int(name_alg),
        objectAttributes=_AK_ATTRIBUTES,
        parameters=signing_parameters(label, scheme, hash_alg),
    )
    return TPM2B_PUBLIC(publicArea=area)


def key_type(label: str) -> int:
    """TPM_ALG_RSA or TPM_ALG_ECC, by a key's label ("rsa2048", "ecc384")."""
    return int(TPM2_ALG.RSA if label.startswith("rsa") else TPM2_ALG.ECC)


def signing_parameters(label: str, scheme: int, hash_alg: HashAlgorithm) -> Any:
    """TPMU_PUBLIC_PARMS of a signing key; with TPM_ALG_NULL as its scheme, each signature chooses its own."""
    no_symmetric = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
    details = TPMU_ASYM_SCHEME(anySig=TPMS_SCHEME_HASH(hashAlg=int(hash_alg)))
    if label.startswith("rsa"):
        return TPMU_PUBLIC_PARMS(
            rsaDetail=TPMS_RSA_PARMS(
                symmetric=no_symmetric,
                scheme=TPMT_RSA_SCHEME(scheme=scheme, details=details),
                keyBits=int(label.removeprefix("rsa")),
            )
        )
    return TPMU_PUBLIC_PARMS(
        eccDetail=TPMS_ECC_PARMS(
            symmetric=no_symmetric,
            scheme=TPMT_ECC_SCHEME(scheme=scheme, details=details),
            curveID=_CURVES[label],
            kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
        )
    )


def policy_a(name_alg: HashAlgorithm) -> bytes:
    """The digest of PolicySecret(TPM_RH_ENDORSEMENT), the authorisation of every EK of the low range."""
    start = bytes(name_alg.size)
    return name_alg.digest(name_alg.digest(start + _POLICY_SECRET + _RH_ENDORSEMENT))


def policy_branches(name_alg: HashAlgorithm, auth_policy: bytes) -> tuple[bytes, ...] | None:
    """The branches for PolicyOR that fulfil `auth_policy` after PolicySecret: () when none are needed.

    None: the policy is not one of the profile's, so PolicySecret(TPM_RH_ENDORSEMENT) cannot authorise the EK.
    """
    first = policy_a(name_alg)
    if auth_policy == first:
        return ()
    if name_alg not in _POLICY_C:
        return None
    branches = (first, bytes.fromhex(_POLICY_C[name_alg]))
    either = name_alg.digest(bytes(name_alg.size) + _POLICY_OR + b"".join(branches))
    return branches if auth_policy == either else None
