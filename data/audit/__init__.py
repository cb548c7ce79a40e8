"""Whether the labels of a dataset can be told without looking at what its images show."""
