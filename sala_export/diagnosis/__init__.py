"""What this machine has and what would run on it: `sala-export doctor`."""
