"""The model that all formats are read into: schema, blocks of steps, sources, and the rules of the Kabuki format."""
