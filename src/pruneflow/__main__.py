"""`python -m pruneflow`: the command `pruneflow`, by this interpreter."""

from pruneflow.cli import main

if __name__ == "__main__":
    main()
