"""Entry points of commands, atomic writes, versions, child processes."""
