"""The doctor's host part: what is wrong on a host, in words. Changes nothing; the standard library alone."""
