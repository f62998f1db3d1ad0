"""MLflow, a view of the files: live logging, runs, registry, promotion, serving.

It imports `core`, `data`, `training`, `evaluation` and `lineage`.
"""
