"""What has been proven about one agent so far: the state that lets the next round be incremental."""

from collections.abc import Collection

import msgspec

from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.runtime_policy import PolicyHash, parts_of
from keylime.measured_boot.machine_values import MachineValue


class BootSession(msgspec.Struct, frozen=True):
    """The boot that the last accepted quote came from, as the TPM and the agent tell it.

    `clock` is in milliseconds of TPM time; `boottime` is in seconds since the epoch, 0 when not sent.
    """

    reset_count: int
    restart_count: int
    clock: int
    boottime: int


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Persisted after every accepted round; any verifier can go on from it (property P5)."""

    boot: BootSession | None = None
    ima: ImaCheckpoint = ImaCheckpoint.fresh()
    ima_policy: PolicyHash | None = None  # of the runtime policy that judged the list so far
    public_key: str | None = None  # PEM of the payload key, as bound by PCR 16
    evaluated_boot: str | None = None  # which event log was evaluated in which bank by which policy
    incomplete_rounds: int = 0  # rounds without a verdict since the last one with one
    reboots: int = 0
    firmware_version: int | None = None
    os_log_sent: bool = False  # whether the operating system's log has ever come
    machine_values: tuple[MachineValue, ...] = ()  # as they were when the log first told them

    @classmethod
    def fresh(cls) -> "Checkpoint":
        """The checkpoint of an agent that nothing is known about."""
        return cls()

    def restarted(self) -> "Checkpoint":
        """This checkpoint with the IMA list to be appraised from entry 0 again."""
        return msgspec.structs.replace(self, ima=ImaCheckpoint.fresh())

    def under_policy(self, content_hash: PolicyHash, succeeded: Collection[PolicyHash] = ()) -> "Checkpoint":
        """This checkpoint, restarted when other runtime policies judged the IMA list so far.

        Not so if all that did are among those of which it is known that they have been `succeeded`: they
        ended at a date that was set before, or the policy accepts whatever they did.
        """
        judged_by = parts_of(self.ima_policy or PolicyHash(""))
        goes_on = content_hash == self.ima_policy or all(one in succeeded for one in judged_by)
        return self if goes_on else self.restarted()


def encode_checkpoint(checkpoint: Checkpoint) -> str:
    """The JSON text that a store keeps."""
    return msgspec.json.encode(checkpoint).decode()


def decode_checkpoint(text: str | None) -> Checkpoint:
    """A stored checkpoint; anything unreadable is a fresh one, which only costs a full appraisal.

    One from before it was recorded that the list begins with boot_aggregate has the list appraised again.
    """
    if not text:
        return Checkpoint.fresh()
    try:
        checkpoint = msgspec.json.decode(text, type=Checkpoint)
    except msgspec.DecodeError:
        return Checkpoint.fresh()
    return checkpoint if checkpoint.ima.anchored else checkpoint.restarted()
