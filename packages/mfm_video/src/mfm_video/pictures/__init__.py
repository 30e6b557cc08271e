"""Sheets and animations that show what a model of clips predicts."""
