"""Looking into models: what they have learnt, and why one says what it says."""
