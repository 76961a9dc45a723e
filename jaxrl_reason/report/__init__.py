"""What a run shows: console and pictures."""
