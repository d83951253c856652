"""The contract suites: what a backend has to pass. One module per kind of backend."""
