"""Recipes, in groups by source, and how they are found and resolved."""
