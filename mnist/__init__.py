"""What the pipeline is made of: imported by `stages/` and `tools/`, never run."""
