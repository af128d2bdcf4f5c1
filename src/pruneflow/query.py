"""Runs as DataFrames: `pruneflow.query.runs()`, `.levels()`, `.layers()` and the like."""

from pruneflow.tracking.query import (
    environments,
    latencies,
    layers,
    levels,
    runs,
    runs_and_levels,
    sensitivity,
    summaries,
)

__all__ = [
    "environments",
    "latencies",
    "layers",
    "levels",
    "runs",
    "runs_and_levels",
    "sensitivity",
    "summaries",
]
