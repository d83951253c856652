"""What an author writes: Topology, Node, State, slot. Builds model values."""
