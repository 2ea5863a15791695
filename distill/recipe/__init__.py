"""Recipes: their fields, how they are read, checked and planned."""
