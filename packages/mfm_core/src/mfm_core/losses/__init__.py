"""What training minimises: masked regression, and the cross-entropies of classification."""
