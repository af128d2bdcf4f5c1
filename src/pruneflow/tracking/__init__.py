"""Tracking: runs in MLflow, their checkpoints and records. The one package that imports mlflow."""
