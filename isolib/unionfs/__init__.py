"""Union file systems: directories in layers merged into one tree, images, commits and volumes."""
