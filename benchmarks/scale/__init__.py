"""What reading costs against the length of a log: logs that are made, and the commands that are measured on them."""
