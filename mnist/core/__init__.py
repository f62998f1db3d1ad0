"""What every other package stands on: params, paths, files, errors, process start and end.

It imports nothing of ours.
"""
