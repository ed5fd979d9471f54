"""Image files: what their headers say, whether they are whole, decoding and encoding."""
