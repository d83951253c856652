"""The contracts that backends fulfil. ``grape.testing.contracts`` holds the suite of each."""
