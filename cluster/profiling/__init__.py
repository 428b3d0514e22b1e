"""`crossdock profile`: the real engine, edges and router, in processes of their own."""
