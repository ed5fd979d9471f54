"""Recipes: what a lab would write a dataset builder for, in a small YAML file."""
