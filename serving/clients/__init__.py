"""Call a server over gRPC or REST, and generate load."""
