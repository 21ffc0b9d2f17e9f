"""What a response says: which model, is it a failure."""
