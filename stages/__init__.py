"""What runs: one module is one DVC stage of the same name."""
