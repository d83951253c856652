"""One app in this process: what it is, what it is put together from, and its run from beginning to end."""
