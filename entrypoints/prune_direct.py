"""Entry point `prune_direct`."""

from pruneflow.cli import run_entrypoint

if __name__ == "__main__":
    run_entrypoint("prune_direct")
