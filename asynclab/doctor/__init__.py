"""Is a configuration right?  Checks, and known errors to be planted that they must find."""
