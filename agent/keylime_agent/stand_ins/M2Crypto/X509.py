"""Certificates as existing payloads read them: `load_cert(path).get_serial_number()`."""

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

FORMAT_DER = 0
FORMAT_PEM = 1


class X509Error(ValueError):
    """Data that are no certificate in the format that was asked for."""


class X509:
    """A certificate."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self._certificate = certificate

    def get_serial_number(self) -> int:
        """The number that its authority gave it."""
        return self._certificate.serial_number


def load_cert(file: str, format: int = FORMAT_PEM) -> X509:
    """The certificate in a file. Raises OSError, X509Error."""
    with open(file, "rb") as opened:
        return load_cert_string(opened.read(), format)


def load_cert_string(string: bytes | str, format: int = FORMAT_PEM) -> X509:
    """The certificate in a text or in bytes. Raises X509Error."""
    data = string.encode() if isinstance(string, str) else string
    if format not in (FORMAT_DER, FORMAT_PEM):
        raise ValueError("Unknown format. Must be either FORMAT_DER or FORMAT_PEM")
    try:
        if format == FORMAT_DER:
            return X509(x509.load_der_x509_certificate(data))
        return X509(x509.load_pem_x509_certificate(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise X509Error(f"no certificate: {error}") from error
