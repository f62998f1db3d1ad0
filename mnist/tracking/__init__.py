"""MLflow, a view of the files: live logging, metrics, runs, registry, promotion, serving.

It imports `core`, `data`, `training`, `evaluation` and `lineage`.
"""
