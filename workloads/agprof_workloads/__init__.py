"""Training jobs that come with agprof: something real to profile before one's own script is at hand."""
