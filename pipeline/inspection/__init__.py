"""What a prepared directory is and holds, in words and pictures."""
