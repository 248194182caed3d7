"""The processes of a run: what launched them, who is there, what they say to each other, and how
they allocate memory."""
