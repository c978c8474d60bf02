"""Batches in an order that can be taken up anywhere, and exact sums over a data set."""
