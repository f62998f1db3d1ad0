"""The code, params and data of a result: git, lock, fingerprint, experiments, sandbox, compare.

It imports `core` alone.
"""
