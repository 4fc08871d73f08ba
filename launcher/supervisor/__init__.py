"""Supervision of a process tree: exec notifications, ptrace, and the routing of container programs.

Runs as one process of its own in the host's namespaces. It serves no file system, and it is no
security boundary against the people whose shell it supervises.
"""
