"""From losses to task gradients: the graph, the backward passes, and where gradients are kept."""
