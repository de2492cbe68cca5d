"""Black-box search: strategies that only see architectures and scores."""
