"""Which result or recipe is better: revision, diff, Markdown, ranking, recipes.

It imports `core`, `data`, `training`, `evaluation` and `lineage`, and not `tracking`.
"""
