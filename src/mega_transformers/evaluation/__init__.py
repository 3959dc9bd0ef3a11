"""Evaluating models: texts of any length piece by piece, outputs beside references, and simple baselines."""
