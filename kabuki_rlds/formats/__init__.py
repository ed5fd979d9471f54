"""The file formats, a package each: how a path is opened, and a source (and sink) for each format."""
