"""What happens to a source on its way to a sink: recipes, and fields that are derived or filled in."""
