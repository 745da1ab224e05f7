"""Where policies were until 8.0: names that scripts written against those modules may go on importing.

New code imports from `keylime.ima`, `keylime.measured_boot`, `keylime.tpm` and `keylime.documents`.
"""
