"""Union mounts: directories of any kind stacked by the kernel, for those who may mount and for those who may not."""
