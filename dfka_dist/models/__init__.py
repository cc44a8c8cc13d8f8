"""The networks: where teachers come from, how they are cut, the two generators and the target."""
