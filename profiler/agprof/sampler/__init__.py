"""One process per node that samples the host, the ranks' process trees and the GPUs into the run folder."""
