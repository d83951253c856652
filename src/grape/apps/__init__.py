"""Apps as directories: what a `grape.toml` says."""
