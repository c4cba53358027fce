"""One picture: how it is prepared, asked about, judged and drawn."""
