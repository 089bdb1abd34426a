"""The buffer's write-ahead log: every state change of every group, on disk, and its replay after a crash."""
