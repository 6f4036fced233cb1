"""One controller a module: what it limits and counts, the same for the caller whichever version of cgroups has it."""
