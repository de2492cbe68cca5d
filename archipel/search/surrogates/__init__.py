"""Models of the score as a function of the architecture."""
