"""The data model that all formats share: schema, blocks of steps, sources, and the rules of the Kabuki format."""
