"""Checks on other versions of the libraries than the pinned ones, each in an environment of its own.

``make test-versions`` loads saved models without this package; ``make test-latest`` runs the suite on the newest
versions.
"""
