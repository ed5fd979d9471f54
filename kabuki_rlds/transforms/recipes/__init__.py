"""Recipes: YAML files that select, rename and transform the fields of a dataset."""
