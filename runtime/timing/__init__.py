"""What time a model takes, on what kind of machine, and how busy that machine was."""
