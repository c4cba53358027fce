"""The page a clinician opens: one picture, one or more models, where they differ, how long they take."""
