"""The GLUE study of the PATS paper."""
