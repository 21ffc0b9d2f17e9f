"""Which pin is in force for a session, and who leads where there is none."""
