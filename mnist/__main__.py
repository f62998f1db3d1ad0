"""`python -m mnist`, the same as the console script `mnist`."""

from mnist.cli import main

if __name__ == "__main__":
    main(prog_name="mnist")
