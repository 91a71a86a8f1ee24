"""What an SAE does on as many tokens as there are: figures, histograms and plots, in memory that does not grow with them."""
