"""What a user takes home: the fused classifier in files that this and other programs open."""
