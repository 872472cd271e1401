"""Several runs that are looked at together: their places, the processes that do them, and what they found."""
