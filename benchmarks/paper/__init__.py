"""Times on paper: from FLOPs, bytes and ceilings, for a GPU that need not be here."""
