"""What a model and a policy are worth on tasks: accuracy, rejection, time, with intervals."""
