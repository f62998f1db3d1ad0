"""From tensors to weights: model, loop, optimizers, fast CNN, several processes, history.

It imports `core` and `data`.
"""
