"""Where arrays live: the mesh, the rules from logical axes to mesh axes, processes. Must not know what a layer is."""
