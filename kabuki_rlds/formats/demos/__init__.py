"""Demonstrations and datasets in other projects' layouts: a reader and, for three of them, a writer."""
