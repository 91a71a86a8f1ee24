"""From a wish to a small steering that was tested, or the news that nothing was found."""
