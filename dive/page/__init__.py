"""The page of `dive report`: references beside the reports of several methods, in one file."""
