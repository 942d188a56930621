"""HTTP: what clients may send, what they get back, and how the server starts and stops."""
