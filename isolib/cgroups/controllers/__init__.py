"""The controllers of control groups, each a module of its own."""
