"""Image files: reads headers, detects damage, decodes and encodes."""
