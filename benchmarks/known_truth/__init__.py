"""What every number of the package is worth where the truth is known; see `__main__`."""
