"""Sheets that show what a model predicts, where it looks, and what lies near to what in its features."""
