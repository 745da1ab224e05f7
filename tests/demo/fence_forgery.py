"""Sends an agent revocation messages that nobody with the right to do so has signed. Runs on a node.

python -m tests.demo.fence_forgery AGENT_ADDRESS CERTIFICATE KEY ACCUSED_ID ACCUSED_ADDRESS
"""

import sys
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.messages.revocation import RevocationMessage
from keylime.revocation.signing import sign_revocation
from tests.lab.rest import Identity, Rest, client_context


def main() -> None:
    agent, certificate, key, accused_id, accused_ip = sys.argv[1:]
    message = RevocationMessage(
        type="revocation",
        ip=accused_ip,
        agent_id=accused_id,
        port=9002,
        tpm_policy="{}",
        meta_data="{}",
        event_time="Sun Nov 22 18:05:08 2026",
        event_id="forged",
        severity_label="emergency",
        context="{}",
    )
    stranger = rsa.generate_private_key(65537, 2048)
    pem = stranger.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    api = Rest(agent, 9002, client_context(Identity(Path(certificate), Path(key))))
    for private_key in ("", pem):
        signed = sign_revocation(message, private_key)
        answer = api.request("POST", "/v2.5/notifications/revocation", msgspec.to_builtins(signed))
        print(answer.code)


if __name__ == "__main__":
    main()
