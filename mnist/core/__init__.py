"""The base of all packages: params, paths, files, errors, process start and end.

It imports no other package of this project.
"""
