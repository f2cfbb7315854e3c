"""One run of `prepare`: what may be written, what it resumes from, who does the work."""
