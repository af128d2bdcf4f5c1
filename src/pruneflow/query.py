"""Runs as DataFrames: `pruneflow.query.runs() / .levels() / .layers() / .latencies()`."""

from pruneflow.tracking.query import environments, latencies, layers, levels, runs, runs_and_levels

__all__ = ["environments", "latencies", "layers", "levels", "runs", "runs_and_levels"]
