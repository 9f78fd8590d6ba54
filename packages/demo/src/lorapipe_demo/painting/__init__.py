"""From a scene of the drawn world to its picture: backgrounds, people, creatures, and the pen that draws them."""
