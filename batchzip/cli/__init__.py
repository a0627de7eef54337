"""The command line: `batchzip swap`."""
