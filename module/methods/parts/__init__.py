"""Building blocks of single methods and of families; the files beside this folder hold the methods."""
