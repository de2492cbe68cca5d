"""The shared vocabulary: choices and who decides them, spaces, the method registry, run folders, errors."""
