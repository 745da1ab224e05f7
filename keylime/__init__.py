"""What every Keylime program shares: wire messages, evidence formats, policies, appraisal. Knows no component."""
