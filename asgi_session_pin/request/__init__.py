"""What a request says: which session, which model."""
