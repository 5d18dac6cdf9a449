//! Nothing lives here: a crate needs a target, and the benchmarks beside this file are all there is.
