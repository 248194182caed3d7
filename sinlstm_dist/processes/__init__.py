"""The processes of a run: what launched them, who is there, and what they say to each other."""
