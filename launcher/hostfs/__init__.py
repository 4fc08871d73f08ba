"""The FUSE server: a host directory (normally `/`), served to the mount of an attach or run.

`options` is light and imported by the manager; everything else only by the forked server process.
This package mounts nothing: stage 1 opens and mounts /dev/fuse and sends the descriptor up.
"""
