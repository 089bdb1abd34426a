"""`userrl report`: run folders as one HTML file that needs nothing else, or as a page that follows a run."""
