"""Events on their way from one app of a server to another: what lies at one door for the other app goes in at that."""
