"""Evaluating models: texts of any length piece by piece, outputs against references, and simple baselines."""
