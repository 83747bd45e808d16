"""One file a command: parse, call, print; nothing heavy is imported before it is needed."""
