"""The double-clone pipeline as a library: manager, PARENT, CHILD, INIT over socketpairs.

Standard library and msgpack only (pyroute2 inside the one function that needs it). It knows
namespaces, maps, mounts and credentials; it knows no container engine, serves no FUSE and traces
no process. Not a security boundary by itself.
"""
