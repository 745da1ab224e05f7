# mypy: ignore-errors
# ruff: noqa: ASYNC221, ASYNC230, I001, S605
import os
import ast
from cryptography import x509
import keylime.secure_mount as secure_mount
from keylime import keylime_logging

logger = keylime_logging.init_logging("local_action_rm_ssh")


async def execute(event):
    if event.get("type") != "revocation":
        return

    metadata = event.get("meta_data", {})
    if isinstance(metadata, str):
        metadata = ast.literal_eval(metadata)

    serial = metadata.get("cert_serial")
    if serial is None:
        logger.error("Unsupported revocation message: %s", event)
        return

    # load up my own cert
    secdir = secure_mount.mount()
    with open(f"{secdir}/unzipped/mycert.crt", "rb") as cert:
        ca = x509.load_pem_x509_certificate(cert.read())

    # is this revocation meant for me?
    if serial == ca.serial_number:
        logger.info("A node in the network has been compromised: %s", event["ip"])
        os.system(f"iptables -A INPUT -s {event['ip']} -j DROP")
