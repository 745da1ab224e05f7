"""Stands in for M2Crypto where it is not installed: what revocation actions of existing payloads use of it.

Only such actions see it, and only when there is no other module of this name.
"""
