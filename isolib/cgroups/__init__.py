"""Control groups: what processes may use together, and what they have used."""
