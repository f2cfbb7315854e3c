"""What a process knows of itself: its device, its peers, when to stop."""
