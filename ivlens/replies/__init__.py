"""What the model says: replies as they are written, where they end, and how right they are."""
