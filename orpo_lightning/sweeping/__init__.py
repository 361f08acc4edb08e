"""Many runs of one configuration, each with other values of some keys, and which of them is best."""
