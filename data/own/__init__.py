"""What the datasets of a user's own images share, whatever has listed these."""
