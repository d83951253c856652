"""Our rows beside limits and peers, in the same run: `make bench`."""
