"""The typed bodies of every REST call and of the revocation message: used in both directions."""
