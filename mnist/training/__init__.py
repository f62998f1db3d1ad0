"""From tensors to weights: model, loop, optimizers, fast CNN, several processes, history.

It may import `core` and `data`.
"""
