"""Kabuki's steps in the layouts of others, for the trainers that read those: one module a layout."""
