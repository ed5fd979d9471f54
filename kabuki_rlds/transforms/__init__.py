"""Transforms between source and sink: recipes, and required fields that are derived or filled in."""
