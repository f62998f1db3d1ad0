"""What MLflow knows: live logging, runs, registry, promotion, serving.

It imports `core`, `data`, `training`, `evaluation` and `lineage`.
"""
