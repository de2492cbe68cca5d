"""Claims: each paper's headline statement as an experiment with a verdict, one file a paper."""
