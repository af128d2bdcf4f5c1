"""Entry point `export`."""

from pruneflow.cli import run_entrypoint

if __name__ == "__main__":
    run_entrypoint("export")
