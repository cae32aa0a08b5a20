"""From the faces of a frame to one aligned crop: which face, how cut, what is recorded."""
