"""Before the first request, in the API process: what is to be served is found, checked and tried."""
