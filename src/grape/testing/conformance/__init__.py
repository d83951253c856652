"""What every worker has to do, in whatever language: cases as data, and a driver that plays the engine."""
