"""Log and count what the server does."""
