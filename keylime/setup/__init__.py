"""`keylime-setup`: makes a machine part of an installation, with one command on each side."""
