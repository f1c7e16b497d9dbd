"""Selection: the tables, the jobs and who does them."""
