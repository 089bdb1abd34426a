"""The buffer's write-ahead log: what happened to every group, on disk, and its replay after a crash."""
