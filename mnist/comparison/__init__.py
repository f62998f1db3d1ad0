"""Comparisons of results and of recipes: revision, diff, Markdown, ranking, recipes, trials, verdict.

It imports `core`, `data`, `training`, `evaluation` and `lineage`, and not `tracking`.
"""
