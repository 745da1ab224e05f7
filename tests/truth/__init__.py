"""Verifiers under faults, beside somebody who knows the truth of every machine.

`history` is what happened, `checker` what must not have; `fleet`, `observer` and `stage` make it happen and
write it down, `faults` and `scenarios` say what goes wrong.
"""
