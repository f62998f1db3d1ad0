"""From weights to numbers and pages: scores, statistics, insight, figures, charts, report, model card.

It imports `core`, `data`, `training` and `lineage`.
"""
