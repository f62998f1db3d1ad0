"""What people run beside the pipeline; imports `mnist`, and is imported by nothing."""
