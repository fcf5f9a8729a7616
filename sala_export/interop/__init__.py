"""Models for the programs of others, in the form that these ask for."""
