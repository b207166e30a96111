"""How it runs over time: lowering, task graph, engines, serving loop, results."""
