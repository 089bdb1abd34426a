"""`userrl play`: a person as the agent or as the user of a dialogue."""
