"""The trainer: two engines that take turns, whatever serves the teachers and whoever launches
it."""
