"""The stages of the pipeline: each module is the DVC stage of its name."""
