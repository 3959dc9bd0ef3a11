"""Mega."""
