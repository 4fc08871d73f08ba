"""The product: a process launcher, and attaching to running containers with the host's tools."""
