"""Records of logs, and where they go."""
