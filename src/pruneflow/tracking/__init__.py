"""Tracking: runs in MLflow, their checkpoints and records. The one package that imports mlflow."""

import os

# a bar for every file, of which a query reads hundreds
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
