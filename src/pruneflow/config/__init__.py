"""The configuration of each stage: names, types, help and limits, in one place.

Configurations are made by `resolution.resolve`, and frozen; nothing is deleted or filled in later
except what only the machine can tell (`device` left to `auto`, `threads` not given).
"""

from __future__ import annotations

from pruneflow.config.base import NEWEST, Config, as_text, reads_texts, short_model
from pruneflow.config.pruning import DirectConfig, GradualConfig, PruneConfig, SensitivityConfig
from pruneflow.config.reading import BenchmarkConfig, ExportConfig, ReportConfig, SweepConfig
from pruneflow.config.training import OF_RATE, OF_TRAINING, FinetuneConfig, Settings

__all__ = [
    "NEWEST", "OF_RATE", "OF_TRAINING", "BenchmarkConfig", "Config", "DirectConfig", "ExportConfig",
    "FinetuneConfig", "GradualConfig", "PruneConfig", "ReportConfig", "SensitivityConfig",
    "Settings", "SweepConfig", "as_text", "reads_texts", "short_model",
]  # fmt: skip
