"""Studies: what is claimed, as a grid file, stored rows, a figure and a table, each made by one command that resumes."""
