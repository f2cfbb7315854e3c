"""What people hold: a layout says which containers hold which images, and what the labels are."""
