"""Parse the server's flags and configuration files."""
