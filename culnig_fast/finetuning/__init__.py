"""Training of chosen modules alone, and what it does to a target task and to culture (CULNIG, section 9)."""
