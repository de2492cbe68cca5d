"""One-shot search: train all networks of a space at once with shared weights, then search among them."""
