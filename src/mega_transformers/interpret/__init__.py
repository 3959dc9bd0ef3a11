"""Looking into models: why one says what it says, and what its layers do."""
