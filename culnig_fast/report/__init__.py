"""One self-contained page of a run: `writing.write_report` writes it, from the files of the run's folder alone."""
