from keylime.ima.findings import no_progress
from keylime.ima.summary import file_warning, ima_error_summary
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier, file_digest, line_of


def test_failures_are_counted_by_template_in_the_words_that_operators_grep_for() -> None:
    kernel = Kernel()
    kernel.run("/a", "1")
    kernel.run("/b", "1")
    kernel.add(line_of("ima-sig", f"{file_digest('1')} /c "))
    findings = Verifier(policy_of([b""])).appraise(kernel.text(), kernel.pcr).findings
    assert ima_error_summary(findings[:1]) == (
        "IMA ERRORS: Some entries couldn't be validated. Number of failures in modes: ImaNg 1."
    )
    assert ima_error_summary(findings).endswith("Number of failures in modes: ImaNg 2, ImaSig 1.")
    assert ima_error_summary([no_progress(1, 2)]).startswith("IMA ERRORS: ")


def test_each_file_has_its_warning() -> None:
    kernel = Kernel()
    kernel.run("/a", "1")
    policy = policy_of([kernel.text()])
    kernel.run("/a", "2")
    kernel.run("/b", "3")
    changed, unknown = Verifier(policy).appraise(kernel.text(), kernel.pcr).findings
    old, new = (file_digest(content).removeprefix("sha256:") for content in ("1", "2"))
    assert file_warning(unknown) == "File not found in allowlist: /b"
    assert file_warning(changed) == f"Hashes for file /a don't match {new} not in ['{old}']"
    assert changed.context["got"] == new
    assert file_warning(no_progress(1, 2)) is None


def test_names_cannot_forge_lines_of_a_log() -> None:
    kernel = Kernel()
    kernel.run("/a\x1b[2K\r2026-01-01", "1")
    (finding,) = Verifier(policy_of([b""])).appraise(kernel.text(), kernel.pcr).findings
    assert file_warning(finding) == r"File not found in allowlist: /a\x1b[2K\r2026-01-01"
    assert finding.explanation.isprintable()
