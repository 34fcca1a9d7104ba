"""A run directory on disk: every file format, snapshots, locks and prefetching."""
