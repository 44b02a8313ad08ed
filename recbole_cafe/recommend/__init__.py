"""Recommendations from trained weights: in a program, from files, as a service. Needs neither RecBole nor pandas."""
