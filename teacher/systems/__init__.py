"""The teachers that can be trained, a builder each; `teacher.system.SYSTEMS` is the table."""
