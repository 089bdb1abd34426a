"""The `userrl` command line: parsing and one function a command."""
