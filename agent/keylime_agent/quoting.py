"""How an agent makes its quotes, in the words of its API, and that it could not make one."""

from dataclasses import dataclass

from keylime.errors import KeylimeError
from keylime.hashes import HashAlgorithm
from keylime.messages.versions import version_key


@dataclass(frozen=True, slots=True)
class QuoteAlgorithms:
    """How quotes are made: PCR bank, kind of AK with its size ("rsa2048"), signature scheme ("rsassa")."""

    bank: HashAlgorithm
    encryption: str
    signing: str

    def encryption_for(self, version: str) -> str:
        """The kind of AK in the words of API `version`: before 2.5 the two usual sizes go without saying."""
        if (version_key(version) or (0, 0)) < (2, 5):
            return {"rsa2048": "rsa", "ecc256": "ecc"}.get(self.encryption, self.encryption)
        return self.encryption


class QuoteFailed(KeylimeError):
    """The TPM did not quote; the reason is for the agent's log, the peer learns only that."""
