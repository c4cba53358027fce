"""Opens any exported bundle with any engine; numpy in, numpy out. No torch here."""
