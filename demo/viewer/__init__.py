"""The picture viewer: what the browser is given, and the scripts that show it."""
