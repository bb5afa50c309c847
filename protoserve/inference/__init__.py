"""A bundle and a picture → a prediction with its evidence."""
