"""Encoders for texts of any length: vectors, labels, tags."""
