"""The packages that the pipeline is made of; `stages/` and `mnist.cli` run them."""
