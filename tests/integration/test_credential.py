"""Credentials made in software and opened by a TPM through tpm2-tools, which share no code with us."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keylime.nonce import random_text
from keylime.tpm.keys import parse_attestation_key, parse_endorsement_key
from keylime.tpm.sealing import make_credential
from tests.captures import VM_DEBIAN12, Capture, captures
from tests.fakes.swtpm import SoftwareTpm


class Tools:
    """tpm2-tools working on one TPM, with files in one directory."""

    def __init__(self, tpm: SoftwareTpm, directory: Path) -> None:
        self.directory = directory
        self._environment = {"PATH": "/usr/bin:/bin", "TPM2TOOLS_TCTI": tpm.tcti, "TSS2_LOG": "all+NONE"}

    def run(self, tool: str, *arguments: str) -> None:
        """Runs `tpm2_<tool>` and flushes what it leaves behind. Raises CalledProcessError."""
        for command in ([f"tpm2_{tool}", *arguments], ["tpm2_flushcontext", "-t"]):
            subprocess.run(  # noqa: S603  # fixed programs with arguments of our own
                command,
                cwd=self.directory,
                env=self._environment,
                check=True,
                capture_output=True,
                timeout=100,
            )

    def authorised(self, tool: str, *arguments: str) -> None:
        """The same under the policy of an EK: the secret of the endorsement hierarchy."""
        self.run("startauthsession", "--policy-session", "-S", "session.ctx")
        self.run("policysecret", "-S", "session.ctx", "-c", "e")
        self.run(tool, *arguments, "-P", "session:session.ctx")
        self.run("flushcontext", "session.ctx")

    def read(self, file: str) -> bytes:
        return (self.directory / file).read_bytes()

    def activate(self, blob: bytes, *, ek_has_auth_value: bool = False) -> bytes:
        """The secret in `blob`, opened with ek.ctx and ak.ctx."""
        (self.directory / "credential.blob").write_bytes(blob)
        command = (
            "activatecredential",
            "-c",
            "ak.ctx",
            "-C",
            "ek.ctx",
            "-i",
            "credential.blob",
            "-o",
            "opened",
        )
        if ek_has_auth_value:
            self.run(*command)
        else:
            self.authorised(*command)
        return self.read("opened")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with SoftwareTpm.manufactured(tmp_path_factory.mktemp("tpm"), with_ek_certificate=False) as tpm:
        yield tpm


@pytest.mark.parametrize("ek", ["rsa", "ecc", "ecc384"])
@pytest.mark.parametrize(("algorithm", "scheme"), [("rsa", "rsassa"), ("ecc", "ecdsa")])
def test_a_tpm_opens_the_credential_for_its_ek_and_ak(
    machine: SoftwareTpm, tmp_path: Path, ek: str, algorithm: str, scheme: str
) -> None:
    tools = Tools(machine, tmp_path)
    tools.run("createek", "-G", ek, "-c", "ek.ctx", "-u", "ek.pub")
    ak_files = ("-c", "ak.ctx", "-u", "ak.pub", "-n", "ak.name")
    tools.run("createak", "-C", "ek.ctx", "-G", algorithm, "-g", "sha256", "-s", scheme, *ak_files)
    key = parse_attestation_key(tools.read("ak.pub"))
    assert key.name == tools.read("ak.name")
    secret = random_text(32).encode()
    blob = make_credential(parse_endorsement_key(tools.read("ek.pub")), key.name, secret)
    # The larger templates of the EK profile set userWithAuth, with an empty value.
    assert tools.activate(blob, ek_has_auth_value=ek == "ecc384") == secret


def test_a_tpm_does_not_open_the_credential_for_another_ak(machine: SoftwareTpm, tmp_path: Path) -> None:
    tools = Tools(machine, tmp_path)
    tools.run("createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub")
    tools.run(
        "createak", "-C", "ek.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-c", "ak.ctx", "-u", "ak.pub"
    )
    blob = make_credential(
        parse_endorsement_key(tools.read("ek.pub")), captures()[0].ak_name("ecdsa"), b"secret"
    )
    with pytest.raises(subprocess.CalledProcessError):
        tools.activate(blob)


@pytest.mark.parametrize("capture", [captures()[0], captures()[4]], ids=lambda capture: capture.name)
def test_the_tpm_of_a_captured_machine_opens_old_and_new_credentials(
    capture: Capture, tmp_path: Path
) -> None:
    home = tmp_path / "tpm"
    shutil.copytree(capture.path / "swtpm-state", home / "state")
    with SoftwareTpm(home, VM_DEBIAN12 / "ca") as tpm:
        tools = Tools(tpm, tmp_path)
        tools.run("createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.pub")
        assert tools.read("ek.pub") == capture.ek_public("rsa")
        ak = [str(capture.path / f"ak_rsassa.tpm2b_{half}") for half in ("public", "private")]
        tools.authorised("load", "-C", "ek.ctx", "-c", "ak.ctx", "-u", ak[0], "-r", ak[1])
        assert tools.activate(capture.read("credential.blob")) == capture.read("credential_activated.bin")
        name = parse_attestation_key(capture.ak_public("rsassa")).name
        ours = make_credential(parse_endorsement_key(capture.ek_public("rsa")), name, b"of today")
        assert tools.activate(ours) == b"of today"
