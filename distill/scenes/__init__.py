"""The built-in world: procedural images with labels, captions, masks, depth and keypoints."""
