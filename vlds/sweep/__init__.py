"""`vlds sweep`: fills a table with runs: which are missing, who does which, what has failed."""
