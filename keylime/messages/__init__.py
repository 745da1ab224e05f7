"""The typed bodies of every REST call and of the revocation message: written once, used in both directions."""
