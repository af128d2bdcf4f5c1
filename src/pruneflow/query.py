"""Runs as DataFrames: `pruneflow.query.runs() / .levels() / .layers() / .latencies()`.

from pruneflow import query
levels = query.levels(study="paper_small")
levels.groupby(["model", "criterion", "level"])["test_after"].agg(["mean", "std", "count"])
"""

from pruneflow.tracking.query import environments, latencies, layers, levels, runs

__all__ = ["environments", "latencies", "layers", "levels", "runs"]
