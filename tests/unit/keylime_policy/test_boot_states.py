"""Reference states that are there already: shown whole, compared by what they allow, looked over."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keylime.documents.places import line_of
from keylime.errors import ConfigError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.measured_boot.learning import learn_components, to_json
from keylime_policy.boot_states import is_reference_state, lint_reference_state, read_reference_state
from keylime_policy.create_measured_boot import create_from_log
from keylime_policy.edit import lint_file, show, show_difference
from keylime_policy.messages import Messages
from keylime_policy.sources import SourceFile
from tests.fakes.boots import Boot

BOOT_LOGS = Path(__file__).parents[2] / "data/boot-logs/public"


def components(boot: Boot) -> dict[str, Any]:
    document: dict[str, Any] = to_json(learn_components(boot.log()))
    return document


def example() -> dict[str, Any]:
    log = (BOOT_LOGS / "qemu-rhel9-shim-grub-secureboot-vendordb.bin").read_bytes()
    state, _ = create_from_log(SourceFile("-e", "log", log), Messages("test"), without_secure_boot=False)
    return dict(state)


def write(path: Path, document: object) -> str:
    path.write_text(json.dumps(document, indent=1))
    return str(path)


def values(document: Any) -> set[str]:
    if isinstance(document, dict):
        return set().union(*map(values, document.values()))
    if isinstance(document, list):
        return set().union(*map(values, document))
    return {document} if isinstance(document, str) else set()


@pytest.mark.parametrize("document", [components(Boot("uki")), components(Boot("shim-grub")), example()])
def test_all_of_it_is_shown_and_nothing_is_cut(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "state.json", document)
    assert show(path, as_json=False) == 0
    shown = capsys.readouterr().out
    assert values(document)
    assert not [value for value in values(document) if value not in shown]
    assert "PCRs to explain  0, " in shown
    assert show(path, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_difference_is_told_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot = Boot("systemd-boot")
    old, new = components(boot), components(replace(boot, kernel=b"another", revoked=(b"bad", b"worse")))
    paths = write(tmp_path / "old.json", old), write(tmp_path / "new.json", new)
    assert show_difference(*paths, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [line.split()[:2] for line in lines if "dbx" in line] == [["+", "secure_boot.dbx"]]
    (name,) = old["components"]["boot"]
    images = [line for line in lines if f"components.boot.{name}.images" in line]
    assert [line[0] for line in images] == ["-", "+"]
    assert show_difference(*paths, as_json=True) == 1
    assert [len(one) for one in json.loads(capsys.readouterr().out).values()] == [1, 2, 0]
    # How a number is written, and the order of what is a set, say nothing; the order of a boot does.
    old["secure_boot"]["dbx"] = [
        {**key, "SignatureData": key["SignatureData"].removeprefix("0x")}
        for key in reversed(old["secure_boot"]["dbx"])
    ]
    same = write(tmp_path / "same.json", old)
    assert show_difference(paths[0], same, as_json=False) == 0
    loaders = {"images": ["ab" * 32, "cd" * 32]}
    for path, images in ((paths[0], loaders["images"]), (paths[1], loaders["images"][::-1])):
        old["components"]["boot-loader"] = {"default": {"images": images}}
        write(Path(path), old)
    capsys.readouterr()
    assert show_difference(*paths, as_json=False) == 1
    assert capsys.readouterr().out == "! components.boot-loader.default.images  the order differs\n"


def test_a_reference_state_is_not_compared_with_a_runtime_policy(tmp_path: Path) -> None:
    state, policy = write(tmp_path / "state.json", {}), tmp_path / "policy.json"
    policy.write_text(EMPTY_POLICY)
    assert not is_reference_state(EMPTY_POLICY)
    with pytest.raises(ConfigError, match=r"state.json is a reference state .* and .*policy.json is none"):
        show_difference(str(policy), state, as_json=False)


def test_what_cannot_be_used_is_told_with_its_line(tmp_path: Path) -> None:
    document = components(Boot("uki"))
    document["components"]["boot"] = {"one": {"command_line_pattern": "("}}
    path = write(tmp_path / "state.json", document)
    with pytest.raises(ConfigError, match=r"components.boot\['one'\].command_line_pattern"):
        show(path, as_json=False)


def remarks(document: dict[str, Any]) -> list[str]:
    text = json.dumps(document, indent=1)
    found = list(lint_reference_state(read_reference_state(text)))
    assert all(not one.place or line_of(text, one.place) for one in found)
    return [one.text for one in found]


@pytest.mark.parametrize("chain", ["shim-grub", "uki", "systemd-boot"])
def test_what_is_made_of_a_log_has_no_remarks(chain: str) -> None:
    assert remarks(components(Boot(chain))) == []
    assert remarks(example()) == []


def changed(document: dict[str, Any], *place: str | int, to: object) -> dict[str, Any]:
    target: Any = document
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = to
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "makes no demand"),
        ({"explained_pcrs": "boot"}, "makes no demand"),
        (changed(example(), "kernels", to=[]), "kernels is empty: no machine passes"),
        ({**example(), "has_secureboot": False, "kernels": []}, "Secure Boot has to be off"),
        (changed(example(), "dbx", to=[]), "dbx is empty"),
        (changed(example(), "kernels", 0, "kernel_cmdline", to=".*"), "allows every command line"),
        (changed(example(), "kernels", 0, "kernel_cmdline", to="quiet .*"), "is open at an end"),
        (
            changed(example(), "kernels", 0, "grub_authcode_sha256", to="0xabcd"),
            "'0xabcd' is no digest of sha256",
        ),
        (changed(example(), "scrtm_and_bios", 0, "scrtm", to={"sha1": "0x" + "ab" * 20}), "none of sha256"),
        (changed(components(Boot("uki")), "secure_boot", "on", to=False), "Secure Boot has to be off"),
        (changed(components(Boot("uki")), "components", "boot", to={}), "components.boot is empty"),
        (
            changed(
                components(Boot("uki")), "components", "boot", to={"a": {"images": []}, "b": {"images": []}}
            ),
            "boot 'b' says the same as 'a'",
        ),
        (
            changed(components(Boot("uki")), "components", "boot", to={"a": {"images": ["ab"]}}),
            "'ab' is no digest of sha256",
        ),
    ],
)
def test_what_its_author_may_not_think_is_said(document: dict[str, Any], words: str) -> None:
    assert any(words in text for text in remarks(document)), remarks(document)


def test_lint_of_a_file_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = changed(example(), "kernels", 0, "kernel_cmdline", to=".*")
    path = write(tmp_path / "state.json", document)
    line = next(
        at for at, text in enumerate(Path(path).read_text().splitlines(), 1) if "kernel_cmdline" in text
    )
    assert lint_file(path, None, as_json=False) == 1
    assert capsys.readouterr().out.startswith(f"{path}:{line}: '.*' allows every command line")
    assert lint_file(path, None, as_json=True) == 1
    assert json.loads(capsys.readouterr().out)[0]["line"] == line
    with pytest.raises(ConfigError, match="--excludelist goes with runtime policies"):
        lint_file(path, path, as_json=False)
