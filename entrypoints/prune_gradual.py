"""Entry point `prune_gradual`."""

from pruneflow.cli import run_entrypoint

if __name__ == "__main__":
    run_entrypoint("prune_gradual")
