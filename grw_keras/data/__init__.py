"""Videos, clips and records: from files to arrays of frames."""
