"""Family 2, discovery: what is going on inside? One technique, one file; notebooks 21 to 26."""
