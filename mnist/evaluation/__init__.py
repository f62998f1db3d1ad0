"""From a model to numbers and pages: predictions, scores, statistics, figures, charts, results, pages.

It imports `core`, `data`, `training` and `lineage`.
"""
