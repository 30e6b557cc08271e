"""Video: the room is laid out; its backbones, decoding and tasks are not built yet."""
