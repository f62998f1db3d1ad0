"""From tensors to a model: networks, their ONNX file, loop, optimizers, fast CNN, several processes, history.

It may import `core` and `data`.
"""
