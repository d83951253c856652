"""Objects in the storage servers of Elliptics, spoken to without any library of theirs."""
