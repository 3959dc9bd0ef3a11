"""Inspects models: what they have learnt, and which tokens lead to an answer."""
