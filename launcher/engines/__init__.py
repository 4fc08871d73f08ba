"""The engines: one file a use of the launcher, each an Operations."""
