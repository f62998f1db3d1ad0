"""Which code, params and data made a result: git, lock, fingerprint, experiments, sandbox, compare.

It imports `core` alone.
"""
