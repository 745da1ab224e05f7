"""Names of files that several parts look for in the directory of an authority."""

CA_CERTIFICATE = "cacert.crt"
