"""Workloads: models, data sets, and how they are trained and evaluated."""
