"""Several processes as one. Entry: `backend.Backend`, whose `ranks` say everything to the other processes."""
