"""Grape: a realtime pipeline processing engine."""
