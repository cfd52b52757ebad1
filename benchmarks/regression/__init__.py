"""What got slower between two results files, and how sure that is."""
