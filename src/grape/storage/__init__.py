"""Objects: what can be done with them, made of what every storage can; and the storages."""
