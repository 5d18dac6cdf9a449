//! A batcher of the runtime over the pool: each batch in flight on a stream of its own.
