"""Where events come from and where outputs go: files, pipes, iterables."""
