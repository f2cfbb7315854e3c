"""What a recipe is made of: augmentation, losses, optimisers, schedules."""
