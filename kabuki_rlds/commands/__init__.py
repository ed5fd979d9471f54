"""What the package does, a module for each function of the public API: convert, build, export, validate and so on."""
