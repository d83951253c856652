"""Traces on their way out of a server: what is read at the doors of its apps goes to a collector."""
