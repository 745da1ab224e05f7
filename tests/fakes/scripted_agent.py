"""An agent on loopback HTTPS whose TPM is a key in software: it proves, or pretends, what a test wants."""

import base64
import hashlib
import hmac
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import PcrValues
from tests.fakes.attesting_agent import payload_key
from tests.fakes.scripted_services import Answer, Call, ScriptedServer
from tests.fakes.software_ak import SoftwareAk


def pem_of(key: rsa.RSAPrivateKey) -> str:
    """The public half in SubjectPublicKeyInfo PEM."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


_agents = itertools.count()  # those that follow upon each other have different keys


@dataclass
class ScriptedAgent:
    """`bound_pem` is what PCR 16 vouches for; the tests that swap the key let it differ from `pubkey`."""

    agent_id: str
    tls: ssl.SSLContext | None
    ak: SoftwareAk = field(default_factory=lambda: SoftwareAk.generate("ecc256", SignatureScheme.ECDSA))
    payload_key: rsa.RSAPrivateKey = field(default_factory=lambda: payload_key(next(_agents) % 3))
    versions: tuple[str, ...] = ("2.1", "2.5")
    hash_alg: HashAlgorithm = HashAlgorithm.SHA256
    bound_pem: str | None = None
    busy_rounds: int = 0  # how often a quote is answered with 503 first
    boot_log: str | None = None  # base64, of integrity quotes; None: gives no such quotes

    def __post_init__(self) -> None:
        self.server = ScriptedServer(self.answer, self.tls)
        self.u: bytes | None = None
        self.payload: str | None = None
        self.tag: str | None = None
        self.key: bytes | None = None
        self.proofs = 0  # how often the key was to be proven
        self.on_proof: Callable[[int], None] = lambda _proofs: None  # before each, with their number

    @property
    def pubkey(self) -> str:
        """The payload key as it is sent."""
        return pem_of(self.payload_key)

    def receive_v(self, v: bytes) -> None:
        """What the verifier does after the first good quote."""
        assert self.u is not None
        key = bytes(a ^ b for a, b in zip(self.u, v, strict=True))
        assert hmac.new(key, self.agent_id.encode(), hashlib.sha384).hexdigest() == self.tag
        self.key = key

    def identity_quote(self, nonce: str) -> dict[str, str]:
        """The results of an identity quote."""
        bank = self.hash_alg
        bound = (self.bound_pem or self.pubkey).encode()
        value = bank.digest(bytes(bank.size) + bank.digest(bound))
        return {
            "quote": self.ak.quote(nonce.encode(), PcrValues(bank, {16: value})),
            "hash_alg": bank.label,
            "enc_alg": "ecc256",
            "sign_alg": "ecdsa",
            "pubkey": self.pubkey,
        }

    def answer(self, call: Call) -> Answer:
        """What the agent says to `call`."""
        if call.path == "/version":
            return Answer(
                results={"supported_version": self.versions[-1], "supported_versions": list(self.versions)}
            )
        match call.method, call.path.split("/")[2:]:
            case "GET", ["quotes", "identity"]:
                if self.busy_rounds:
                    self.busy_rounds -= 1
                    return Answer(503, "busy")
                return Answer(results=self.identity_quote(call.query["nonce"]))
            case "GET", ["quotes", "integrity"] if self.boot_log is not None:
                log = {"mb_measurement_list": self.boot_log} if self.boot_log else {}
                return Answer(results=self.identity_quote(call.query["nonce"]) | log)
            case "POST", ["keys", "ukey"]:
                self._receive_u(call.body)
                return Answer(results=None)
            case "GET", ["keys", "verify"]:
                self.proofs += 1
                self.on_proof(self.proofs)
                if self.key is None:
                    return Answer(400, "Bootstrap key not yet available.")
                proof = hmac.new(self.key, call.query["challenge"].encode(), hashlib.sha384).hexdigest()
                return Answer(results={"hmac": proof})
        return Answer(400, "URI not supported")

    def _receive_u(self, body: dict[str, str]) -> None:
        sha1 = hashes.SHA1()  # noqa: S303 - the wire demands it
        oaep = padding.OAEP(padding.MGF1(sha1), sha1, None)
        self.u = self.payload_key.decrypt(base64.b64decode(body["encrypted_key"]), oaep)
        self.tag = body["auth_tag"]
        self.payload = body.get("payload")
