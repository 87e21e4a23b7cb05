"""`python -m r3_rl` is `r3`."""

from r3_rl.cli import main

if __name__ == "__main__":
    main()
