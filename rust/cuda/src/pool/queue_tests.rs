//! Tests of [`LeaseQueue`].

use super::*;

#[test]
fn streams_are_created_one_by_one_and_then_everybody_waits() {
    let mut queue = LeaseQueue::new(2);
    assert_eq!(queue.request(None), Answer::Create(1));
    queue.created(1);
    assert_eq!(queue.request(None), Answer::Create(2));
    assert_eq!(queue.request(None), Answer::Full);
}
