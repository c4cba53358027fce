"""The engines: one file each behind one seam, imported when asked for."""
