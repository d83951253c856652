"""One server, many applications: what is installed, and the engine process of each app."""
