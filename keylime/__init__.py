"""What every Keylime program shares: messages, evidence formats, policies, appraisal. Knows no component."""
