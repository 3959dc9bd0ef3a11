"""What an encoder says about texts of any length: vectors, labels, tags."""
