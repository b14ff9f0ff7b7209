"""Attacks, each of them real: refused, or shown harmless. What stays open is in ``.github/SECURITY.md``."""
