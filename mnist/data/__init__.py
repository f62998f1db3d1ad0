"""From archives to tensors: catalog, download, store, statistics, expectations, validation report.

It imports `core` alone.
"""
