"""``pluribus bench``: how fast an engine is, without HTTP and without text."""
