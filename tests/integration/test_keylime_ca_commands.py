import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cryptography import x509

from keylime.errors import ConfigError
from keylime_tenant.ca.program import CaArguments, Misuse, run


def carry_out(directory: Path, command: str, password: str = "secret", **flags: object) -> list[str]:  # noqa: S107
    said: list[str] = []
    environ = {"KEYLIME_DIR": str(directory.parent), "KEYLIME_CA_PASSWORD": password}
    arguments = CaArguments(command=command, directory=str(directory), **flags)  # type: ignore[arg-type]
    run(arguments, environ, said.append)
    return said


def test_an_authority_is_made_and_issues_packages_and_revokes(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    assert carry_out(ca, "init") == [f"CA certificate created successfully in {ca}"]
    assert carry_out(ca, "create", name="node1") == [
        f"Created certificate for name node1 successfully in {ca}"
    ]
    assert carry_out(ca, "pkg", name="node1") == ["Creating cert package for node1 in node1-pkg.zip"]
    assert "node1-cert.crt" in zipfile.ZipFile(ca / "node1-pkg.zip").namelist()
    carry_out(ca, "revoke", name="node1")
    serial = x509.load_pem_x509_certificate((ca / "node1-cert.crt").read_bytes()).serial_number
    crl = x509.load_der_x509_crl((ca / "cacrl.der").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(serial) is not None


def test_a_wrong_password_opens_nothing(tmp_path: Path) -> None:
    carry_out(tmp_path / "ca", "init")
    with pytest.raises(ConfigError, match="password"):
        carry_out(tmp_path / "ca", "create", "wrong", name="node1")
    assert not (tmp_path / "ca" / "node1-cert.crt").exists()


@pytest.mark.parametrize("command", ["create", "pkg", "revoke", "import-priv"])
def test_a_command_without_what_it_needs_is_misuse(tmp_path: Path, command: str) -> None:
    with pytest.raises(Misuse):
        carry_out(tmp_path, command)


def test_the_default_directory_must_be_accessible(tmp_path: Path) -> None:
    environ = {"KEYLIME_DIR": str(tmp_path / "gone"), "KEYLIME_CA_PASSWORD": "x"}
    with pytest.raises(Misuse, match="-d"):
        run(CaArguments(command="init"), environ, print)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 2), (["-c", "create"], 255), (["-c", "nonsense"], 255), (["-c", "revoke", "-n", "x"], 1)],
)
def test_the_program_ends_with_the_documented_codes(tmp_path: Path, arguments: list[str], code: int) -> None:
    environ = {"PATH": os.environ["PATH"], "KEYLIME_DIR": str(tmp_path), "KEYLIME_CA_PASSWORD": "x"}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-m", "keylime_tenant.ca.program", *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code
    assert "keylime_ca: error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_shipped_password_makes_the_program_ask_on_its_terminal(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "KEYLIME_DIR": str(tmp_path)}
    master, slave = os.openpty()
    command = [sys.executable, "-m", "keylime_tenant.ca.program", "-c", "init", "-d", str(tmp_path / "ca")]
    with subprocess.Popen(  # noqa: S603 - our own program
        command,
        env=environ,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # no other terminal to ask on
    ) as program:
        os.close(slave)
        assert program.stderr is not None
        prompts = b"Please choose a password for the keystore of the new CA: ", b"\nPlease enter it again: "
        for prompt in prompts:
            assert program.stderr.read(len(prompt)) == prompt
            os.write(master, b"typed\n")
        assert program.wait(60) == 0
    os.close(master)
    carry_out(tmp_path / "ca", "create", "typed", name="node1")
    with pytest.raises(ConfigError):
        carry_out(tmp_path / "ca", "create", "default", name="node2")
